// Pictures on a page: side by side, or two of them in a wipe, under a slider over prepared frames.
//
//   view    = {name, start, wipe, frames, files, error}; name is the slider's, start its position;
//             files, to be saved, are {label, name, href}, or {label, name, picture: its number}
//   frame   = {label, pictures, words}; words are HTML of ours
//   picture = {title, src, words, pixels, scale}; pixels: drawn at a whole multiple of its size
//   scale   = {src, low, high}: the colour bar of a map, and what its ends mean
//
// With a kernel, anywidget calls `render`, and the kernel sends a view of one frame whenever a
// control moves. Without one, a script calls `mount` with all the frames.

const STYLE = `
.ainn-stage { color: inherit; font: 14px/1.45 system-ui, sans-serif; max-width: 100%; }
.ainn-stage * { box-sizing: border-box; }
.ainn-stage figure { margin: 0; min-width: 0; }
.ainn-stage figcaption { font-size: 13px; min-height: 1.45em; overflow-wrap: anywhere; }
.ainn-scrolls { overflow-x: auto; }
.ainn-row { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: flex-start; }
.ainn-stage img { display: block; max-width: none; margin: 0; }
.ainn-stage .ainn-pixels { image-rendering: pixelated; }
.ainn-wipe { position: relative; overflow: hidden; user-select: none; cursor: ew-resize;
    outline-offset: 2px; }
.ainn-layer { position: absolute; inset: 0; overflow: hidden; }
.ainn-layer img { position: absolute; transform-origin: 0 0; }
.ainn-line { position: absolute; top: 0; bottom: 0; width: 44px; margin-left: -22px;
    background: linear-gradient(#fff, #fff) center / 2px 100% no-repeat; cursor: ew-resize;
    touch-action: none; filter: drop-shadow(0 0 1px #000); }
.ainn-line::after { content: "\\2194"; position: absolute; top: calc(50% - 16px); left: 6px;
    width: 32px; height: 32px; border-radius: 50%; background: #fff; color: #222;
    font: 20px/32px system-ui, sans-serif; text-align: center; }
.ainn-line:focus-visible { outline: 3px solid #0072B2; }
.ainn-bar { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; margin: 6px 0;
    max-width: 640px; }
.ainn-bar select, .ainn-bar button, .ainn-bar a { font: inherit; min-height: 32px;
    padding: 2px 10px; color: inherit; background: transparent; border: 1px solid #8888;
    border-radius: 4px; max-width: 100%; text-decoration: none; }
.ainn-bar option { color: #222; background: #fff; }
.ainn-bar button:focus-visible, .ainn-bar a:focus-visible { outline: 3px solid #0072B2; }
.ainn-side { flex: 1 1 150px; min-width: 0; align-self: flex-start; }
.ainn-side select { width: 100%; }
.ainn-side + .ainn-side { text-align: right; }
.ainn-slider { display: flex; gap: 10px; align-items: center; max-width: 520px; }
.ainn-slider input { flex: 1; min-width: 80px; min-height: 32px; }
.ainn-slider output { min-width: 3em; }
.ainn-scale { display: flex; gap: 6px; font-size: 12px; align-items: center; }
.ainn-scale img { flex: 1; height: 10px; min-width: 20px; }
.ainn-error { font-weight: bold; color: #D55E00; }
.ainn-words { margin: 6px 0; }
.ainn-words table { border-collapse: collapse; display: block; overflow-x: auto; }
.ainn-words td, .ainn-words th { padding: 2px 10px 2px 0; text-align: left; font-size: 13px; }
.ainn-busy { min-height: 16px; font-size: 12px; line-height: 13px; opacity: 0; }
.ainn-busy button { font: 14px system-ui, sans-serif; min-height: 32px; margin: 0 0 6px 12px;
    padding: 2px 14px; }
.ainn-busy[data-on] { animation: ainn-busy 1s linear .25s infinite; background:
    linear-gradient(90deg, transparent, #D55E00, transparent) 0 100% / 50% 3px no-repeat; }
@keyframes ainn-busy { from { background-position: 0 100%; opacity: 1; }
    to { background-position: 100% 100%; opacity: 1; } }
`;
const LARGEST = 16; // times, of the zoom
const READABLE = 0.65; // a plot is shrunk no further: its words would have under 8 pixels

/** An element with attributes and children; a function as attribute listens to that event. */
function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function") element.addEventListener(name, value);
        else if (value !== undefined && value !== false) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
/** Width on the page, in CSS pixels, of a picture w wide where `room` is free. */
function fit(w, room, pixels) {
    if (!pixels) return Math.min(w, Math.max(room, READABLE * w));
    if (w > room) return room;
    return w * Math.min(2, Math.floor(room / w));
}

/** Put a stage into an element; returns the function that shows a view. */
function mount(root) {
    const halt = make("button", {hidden: ""}, "stop");
    const busy = make("div", {class: "ainn-busy"}, make("span"), halt);
    const place = make("div");
    const words = make("div", {class: "ainn-words", "aria-live": "polite"});
    const slider = make("div", {class: "ainn-slider"});
    const links = make("div", {class: "ainn-bar"});
    root.classList.add("ainn-stage");
    root.replaceChildren(make("style", {}, STYLE), slider, busy, place, words, links);
    const wipe = makeWipe(place);
    let view = {frames: []}, frame = null;

    function draw() {
        if (!frame) return;
        if (view.wipe) wipe.show(frame.pictures);
        else showRow(place, frame.pictures);
    }

    function choose(number) {
        frame = view.frames[number];
        words.innerHTML = frame.words;
        draw();
    }

    function show(next) {
        const others = JSON.stringify([next.name, next.frames.map((f) => f.label)])
            !== JSON.stringify([view.name, view.frames.map((f) => f.label)]);
        view = next;
        if (view.error) {  // the last picture stays, greyed: it is not what the controls say
            words.replaceChildren(make("p", {class: "ainn-error", role: "alert"}, view.error));
        } else if (view.frames.length) {
            if (others) makeSlider(slider, view, choose);
            if (view.wipe) place.before(words);  // they say what to look for
            else place.after(words);
            choose(others ? view.start || 0 : 0);
        }
        place.style.opacity = view.error ? 0.35 : 1;
        links.replaceChildren(...(view.files || []).map((file) => link(file, frame)));
    }

    let width = 0;
    new ResizeObserver(() => {
        if (width !== root.clientWidth) draw();
        width = root.clientWidth;
    }).observe(root);
    return {show, busy: (doing, stop) => {
        busy.toggleAttribute("data-on", Boolean(doing));
        busy.firstChild.textContent = doing;
        halt.hidden = !stop;
        halt.onclick = stop;
    }};
}

/** A file to save: its bytes, or a picture of the frame as PNG. */
function link(file, frame) {
    if (file.href) return make("a", {href: file.href, download: file.name}, file.label);
    return make("button", {click: async () => {
        const image = new Image();
        image.src = frame.pictures[file.picture].src;
        await image.decode();
        const canvas = make("canvas", {width: image.naturalWidth, height: image.naturalHeight});
        canvas.getContext("2d").drawImage(image, 0, 0);
        make("a", {href: canvas.toDataURL("image/png"), download: file.name}).click();
    }}, file.label);
}

function makeSlider(place, view, choose) {
    if (view.frames.length < 2) return place.replaceChildren();
    const shown = make("output", {}, view.frames[view.start || 0].label);
    const input = make("input", {
        type: "range", min: 0, max: view.frames.length - 1, step: 1, value: view.start || 0,
        "aria-label": view.name, "aria-valuetext": view.frames[view.start || 0].label,
        input: () => {
            const {label} = view.frames[input.value];
            shown.textContent = label;
            input.setAttribute("aria-valuetext", label);
            choose(Number(input.value));
        },
    });
    place.replaceChildren(make("span", {}, view.name), input, shown);
}

/** Pictures side by side; below one another where the page is narrow. */
function showRow(place, pictures) {
    const room = place.clientWidth;
    const images = place.querySelectorAll("figure > img");
    const apart = pictures.length > 1 && room >= 480 ? (room - 12 * (pictures.length - 1))
        / pictures.length : room;
    if (images.length !== pictures.length) {
        place.replaceChildren(make("div", {class: "ainn-row"}, ...pictures.map(() => make("figure",
            {}, make("figcaption"), make("img"), make("div", {class: "ainn-scale"})))));
    }
    place.querySelectorAll("figure").forEach((figure, number) => {
        const picture = pictures[number], [title, image, scale] = figure.children;
        const wide = () => {
            const width = fit(image.naturalWidth, apart, picture.pixels);
            image.style.width = `${width}px`;
            figure.style.width = `${Math.min(width, apart)}px`;
            figure.classList.toggle("ainn-scrolls", width > apart);
            figure.tabIndex = width > apart ? 0 : -1;  // the arrow keys scroll it
        };
        title.textContent = [picture.title, picture.words].filter(Boolean).join(": ");
        image.classList.toggle("ainn-pixels", Boolean(picture.pixels));
        image.alt = title.textContent || "picture";
        image.onload = wide;
        if (image.getAttribute("src") !== picture.src) image.src = picture.src;
        else if (image.naturalWidth) wide();
        const {src, low, high} = picture.scale || {};
        const bar = make("img", {src, alt: `colours from ${low} to ${high}`});
        scale.replaceChildren(...(src ? [low, bar, high] : []));
    });
}

/** Two of several pictures in one place, with a line between them. */
function makeWipe(place) {
    const side = () => make("img", {draggable: "false"});
    const images = [side(), side()];
    const layers = images.map((image) => make("div", {class: "ainn-layer"}, image));
    const line = make("div", {class: "ainn-line", role: "slider", tabindex: 0, "aria-valuemin": 0,
        "aria-valuemax": 100, "aria-label": "line between the left and the right picture"});
    const box = make("div", {class: "ainn-wipe", role: "group",
        "aria-label": "two pictures in one place"}, ...layers, line);
    const choices = ["left", "right"].map((name, number) => make("select", {
        "aria-label": `${name} picture`,
        change: () => {
            chosen[number] = choices[number].value;
            draw();
        },
    }));
    const captions = [make("div"), make("div")];
    const level = make("output", {"aria-label": "zoom"});
    const button = (words, name, act) => make("button", {"aria-label": name, click: act}, words);
    const zooms = make("div", {class: "ainn-bar"},
        button("−", "zoom out", () => zoomTo(zoom / 2)), level,
        button("+", "zoom in", () => zoomTo(zoom * 2)),
        make("span", {}, "drag the line; zoomed in, drag the picture"));
    const sides = choices.map((choice, number) =>
        make("div", {class: "ainn-side"}, choice, captions[number]));
    const content = [box, make("div", {class: "ainn-bar"}, ...sides), zooms];
    const chosen = [];  // titles
    // x, y: the view's left and top, in widths and heights of the picture
    let pictures = [], at = 0.5, zoom = 1, x = 0, y = 0;
    const fingers = new Map();

    function show(next) {
        pictures = next;
        const titles = pictures.map((picture) => picture.title);
        if (box.parentElement !== place) place.replaceChildren(...content);
        for (const number of [0, 1]) {
            const choice = choices[number], last = titles.length - 1;
            if (!titles.includes(chosen[number])) chosen[number] = titles[Math.min(number, last)];
            if ([...choice.options].map((one) => one.value).join() !== titles.join()) {
                choice.replaceChildren(...titles.map((value) => make("option", {value}, value)));
            }
            choice.value = chosen[number];
        }
        draw();
    }

    function draw() {
        chosen.forEach((title, number) => {
            const picture = pictures.find((one) => one.title === title), image = images[number];
            if (!picture) return;
            image.onload = lay;
            if (image.getAttribute("src") !== picture.src) image.src = picture.src;
            image.alt = `${title}: ${picture.words || ""}`;
            captions[number].textContent = picture.words || "";
        });
        lay();
    }

    function lay() {  // places, from `at`, `zoom`, `x` and `y` alone
        const {naturalWidth: w, naturalHeight: h} = images[0];
        if (!w || !place.clientWidth) return;
        const width = fit(w, place.clientWidth, true), height = width * h / w;
        x = clamp(x, 0, 1 - 1 / zoom);
        y = clamp(y, 0, 1 - 1 / zoom);
        box.style.width = `${width}px`;
        box.style.height = `${height}px`;
        box.style.touchAction = zoom > 1 ? "none" : "pan-y";
        box.style.cursor = zoom > 1 ? "grab" : "ew-resize";
        for (const image of images) {
            image.style.width = `${width}px`;
            image.style.height = `${height}px`;
            image.style.transform = `scale(${zoom}) translate(${-x * width}px, ${-y * height}px)`;
            image.classList.toggle("ainn-pixels", zoom * width >= w);
        }
        layers[1].style.clipPath = `inset(0 0 0 ${100 * at}%)`;
        line.style.left = `${100 * at}%`;
        line.setAttribute("aria-valuenow", Math.round(100 * at));
        line.setAttribute("aria-valuetext", `${Math.round(100 * at)} % from the left`);
        level.textContent = `${+zoom.toFixed(1)}×`;
    }

    function zoomTo(next, px = at, py = 0.5) {  // the point (px, py) of the box stays in its place
        next = clamp(next, 1, LARGEST);
        x += px / zoom - px / next;
        y += py / zoom - py / next;
        zoom = next;
        lay();
    }

    function moveLine(to) {
        at = clamp(to, 0, 1);
        lay();
    }

    const inBox = (event) => {
        const area = box.getBoundingClientRect();
        return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
    };
    const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1e-3;

    box.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        box.setPointerCapture(event.pointerId);
        fingers.set(event.pointerId, inBox(event));
        box.dataset.drags = event.target === line || zoom === 1 ? "line" : "picture";
        if (event.target === line) line.focus();
        else if (zoom === 1 && event.pointerType === "mouse") moveLine(inBox(event)[0]);
    });
    box.addEventListener("pointermove", (event) => {
        const before = fingers.get(event.pointerId);
        if (!before) return;
        const here = inBox(event), old = apart([...fingers.values(), before]);
        fingers.set(event.pointerId, here);
        if (fingers.size === 2) {
            const [a, b] = [...fingers.values()];
            zoomTo(zoom * apart([a, b]) / old, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        } else if (box.dataset.drags === "line") {
            moveLine(here[0]);
        } else {
            x -= (here[0] - before[0]) / zoom;
            y -= (here[1] - before[1]) / zoom;
            lay();
        }
    });
    for (const end of ["pointerup", "pointercancel"]) {
        box.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    box.addEventListener("wheel", (event) => {  // a plain wheel scrolls the page
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        zoomTo(zoom * 2 ** (-event.deltaY / 200), ...inBox(event));
    }, {passive: false});
    line.addEventListener("keydown", (event) => {
        const far = event.shiftKey ? 0.1 : 0.02;
        const moves = {ArrowLeft: at - far, ArrowRight: at + far, Home: 0, End: 1};
        if (event.key in moves) moveLine(moves[event.key]);
        else if (event.key === "+") zoomTo(zoom * 2);
        else if (event.key === "-") zoomTo(zoom / 2);
        else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
            y += (event.key === "ArrowUp" ? -0.1 : 0.1) / zoom;
            lay();
        } else return;
        event.preventDefault();
        event.stopPropagation();  // JupyterLab's own keys
    });
    return {show};
}

/** ipywidgets' sliders have no accessible name: give each that of its label. */
function nameHandles(el) {
    requestAnimationFrame(() => {
        const handles = el.closest(".ainn-explorer")?.querySelectorAll(".noUi-handle") || [];
        for (const handle of handles) {
            const label = handle.closest(".widget-inline-hbox")?.querySelector("label");
            if (label) handle.setAttribute("aria-label", label.textContent);
        }
    });
}

/** Called by anywidget for each place where the widget is shown. */
function render({model, el}) {
    const stage = mount(el);
    const update = () => {
        stage.show(model.get("view"));
        nameHandles(el);
    };
    const stop = () => {
        model.set("stops", model.get("stops") + 1);
        model.save_changes();
    };
    const wait = () => stage.busy(model.get("busy"), model.get("stoppable") ? stop : null);
    model.on("change:view", update);
    model.on("change:busy", wait);
    model.on("change:stoppable", wait);
    update();
    wait();
    return () => {
        model.off("change:view", update);
        model.off("change:busy", wait);
        model.off("change:stoppable", wait);
    };
}

/** In a page without a kernel: show all frames, and hide the picture in the output above. */
function present(root, view) {
    for (const picture of view.frames.flatMap((one) => one.pictures)) {
        picture.src = view.sources[picture.src];  // stored once, however often it is shown
    }
    mount(root).show(view);
    for (let node = root, steps = 0; node && steps < 4; node = node.parentElement, steps++) {
        const above = node.previousElementSibling;
        if (above && above.querySelector("img")) {
            above.style.display = "none";
            break;
        }
    }
}

export default {render};
