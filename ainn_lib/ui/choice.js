// Radio buttons or check boxes, each with a picture or a colour beside its label.
//
//   choices = [{label, image, colour}]; value = the label that is chosen, or a list of them

const STYLE = `
.ainn-choice { border: 0; margin: 2px; padding: 0; min-width: 0; max-width: 100%; display: flex;
    flex-wrap: wrap; gap: 2px 8px; align-items: center; font: 13px/1.3 system-ui, sans-serif; }
.ainn-choice label { display: inline-flex; gap: 5px; align-items: center; cursor: pointer;
    min-height: 32px; padding: 2px 6px; border: 2px solid transparent; border-radius: 4px; }
.ainn-choice label:has(img):has(:checked) { border-color: #0072B2; }
.ainn-choice label:focus-within { outline: 2px solid #0072B2; }
.ainn-choice img { width: 48px; height: 48px; object-fit: cover; display: block; }
.ainn-choice i { width: 14px; height: 14px; border-radius: 3px; }
`;
let groups = 0;

export default {render({model, el}) {
    const group = `ainn-choice-${groups++}`;
    const several = Array.isArray(model.get("value"));

    function draw() {
        const value = model.get("value");
        const field = document.createElement("fieldset");
        field.className = "ainn-choice";
        field.setAttribute("aria-label", model.get("description"));
        for (const {label, image, colour} of model.get("choices")) {
            const input = Object.assign(document.createElement("input"), {
                type: several ? "checkbox" : "radio", name: group, value: label,
                checked: several ? value.includes(label) : value === label, onchange: send,
            });
            const row = document.createElement("label");
            row.append(input);
            if (image) row.append(Object.assign(new Image(), {src: image, alt: ""}));
            if (colour) row.append(Object.assign(document.createElement("i"),
                {style: `background: ${colour}`}));
            row.append(label);
            field.append(row);
        }
        const style = document.createElement("style");
        style.textContent = STYLE;
        el.replaceChildren(style, field);
    }

    function send() {
        const chosen = [...el.querySelectorAll(":checked")].map((input) => input.value);
        model.set("value", several ? chosen : chosen[0]);
        model.save_changes();
    }

    function check() {  // the kernel has set the value
        const chosen = [model.get("value")].flat();
        for (const input of el.querySelectorAll("input")) {
            input.checked = chosen.includes(input.value);
        }
    }

    model.on("change:choices", draw);
    model.on("change:value", check);
    draw();
    return () => {
        model.off("change:choices", draw);
        model.off("change:value", check);
    };
}};
