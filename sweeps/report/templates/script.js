"use strict";
// Everything here adds to a page that is complete without it.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const still = matchMedia("(prefers-reduced-motion:reduce)").matches;

// The contents mark the section that is being read.
const links = new Map(all("nav a").map(a => [a.hash.slice(1), a]));
const seen = new Set();
const watch = new IntersectionObserver(entries => {
  for (const e of entries) e.isIntersecting ? seen.add(e.target.id) : seen.delete(e.target.id);
  const current = [...links.keys()].find(id => seen.has(id));
  if (current) for (const [id, a] of links) a.toggleAttribute("aria-current", id === current);
}, { rootMargin: "-60px 0px -55% 0px" });
for (const id of links.keys()) { const s = document.getElementById(id); if (s) watch.observe(s); }

// A link into a folded part opens it.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  let folded = false;
  for (let d = target.closest("details"); d; d = d.parentElement.closest("details")) { folded ||= !d.open; d.open = true; }
  if (folded) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();

// Headings copy their link.
for (const heading of all("main h2[id],main h3.title[id]")) {
  const id = heading.closest("section").id;
  const a = make("a", { className: "anchor", href: "#" + id, textContent: "#", title: "Copy the link" });
  a.setAttribute("aria-label", "Link to " + heading.textContent);
  a.addEventListener("click", () => navigator.clipboard?.writeText(location.href.split("#")[0] + "#" + id).catch(() => {}));
  heading.append(" ", a);
}

// Tables with a single row of column names are sorted by any of them.
const value = cell => {
  const text = cell.textContent.trim().replace("−", "-").replace(/^[<≥≤]\s*/, "");
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
};
for (const table of all("table")) {
  const body = table.tBodies[0], heads = all("thead th", table);
  if (body.rows.length < 4 || table.tHead.rows.length > 1) continue;
  heads.forEach((head, i) => {
    const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [value(a.cells[i]), value(b.cells[i])];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return (typeof x === "number" ? x - y : x.localeCompare(y)) * (down ? -1 : 1);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

// Edited images: one over the other, uncovered by a slider.
for (const pair of all(".pair")) {
  const input = pair.querySelector("input"), after = pair.querySelector(".after img");
  const show = () => { after.style.clipPath = `inset(0 0 0 ${100 - input.value}%)`; };
  pair.classList.add("over");
  input.closest("label").hidden = false;
  input.addEventListener("input", show);
  show();
}

// Tooltips of heatmap cells; a click shows the cell in the explorer.
const tip = document.getElementById("tip");
const explorer = startExplorer();
for (const figure of all("figure[data-name^=heatmap-],figure[data-name^=network-]")) {
  const [kind, task, variant] = figure.dataset.name.split("-");
  const image = figure.querySelector("image"), data = explorer?.data;
  const of = data?.tasks.find(t => t.key === task);
  if (!of || (kind === "heatmap" && variant !== "trained")) continue;
  const cell = event => {
    if (kind === "network") {
      const box = event.target.closest("[id*='-site.']");
      return box && { site: +box.id.split("-site.")[1], step: data.steps.length - 1 };
    }
    const box = image.getBoundingClientRect(), rows = data.names.length, columns = data.all.length;
    const row = Math.floor((event.clientY - box.top) / box.height * rows);
    const column = Math.floor((event.clientX - box.left) / box.width * columns);
    return row >= 0 && row < rows && column >= 0 && column < columns ? { site: row, step: column } : null;
  };
  const name = c => data.names[c.site];
  const stepOf = c => kind === "network" ? data.steps.at(-1) : data.all[c.step];
  figure.addEventListener("pointermove", event => {
    const c = cell(event);
    tip.hidden = !c;
    figure.style.cursor = c ? "pointer" : "";
    if (!c) return;
    const mean = of.every[c.site][kind === "network" ? data.all.length - 1 : c.step];
    tip.textContent = `${name(c)}, step ${stepOf(c)}: ${of.label} ${mean === null ? "—" : mean.toFixed(2)}`;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 16 + "px";
  });
  figure.addEventListener("pointerleave", () => { tip.hidden = true; });
  figure.addEventListener("click", event => {
    const c = cell(event);
    if (c && explorer.choose(name(c), stepOf(c)))
      document.getElementById("explorer").scrollIntoView({ behavior: still ? "auto" : "smooth" });
  });
}

function startExplorer() {
  const root = document.getElementById("explore");
  if (!root) return null;
  const data = JSON.parse(root.querySelector("script").textContent);
  const find = name => root.querySelector("." + name);
  const state = { image: 0, site: data.tasks[0].best, step: 0 };
  const palettes = data.tasks.map(t => Array.from({ length: 64 }, (_, i) =>
    [0, 2, 4].map(k => parseInt(t.colours.slice(6 * i + k, 6 * i + k + 2), 16))));
  const pictures = new Map();
  const load = source => {
    if (!pictures.has(source)) {
      const picture = new Image();
      pictures.set(source, picture);
      picture.src = source;
      picture.decode().then(draw, () => {});
    }
    const picture = pictures.get(source);
    return picture.complete && picture.naturalWidth ? picture : null;
  };
  const view = (title, pixelated) => {
    const canvas = make("canvas", { className: pixelated ? "map" : "" });
    canvas.setAttribute("role", "img");
    const caption = make("figcaption", { textContent: title });
    find("views").append(make("figure", {}, canvas, caption));
    return { canvas, caption };
  };
  const picture = title => {
    const image = make("img", { alt: title }), caption = make("figcaption", { textContent: title });
    find("views").append(make("figure", {}, image, caption));
    return image;
  };
  const estimate = view("clean estimate");
  const maps = data.tasks.map(t => view(t.title + ", probe", true));
  const finished = picture("finished image");
  const labels = data.tasks.map(t => picture(t.title + ", label"));
  const charts = data.tasks.map(t => chart(t));

  data.images.forEach((image, i) => {
    const input = make("input", { type: "radio", name: "image", value: i, checked: i === 0 });
    input.addEventListener("change", () => { state.image = i; draw(); });
    find("choices").append(make("label", {}, input, make("img", { src: image.finished, alt: image.caption })));
  });
  data.sites.forEach((site, i) => find("site").append(make("option", { value: i, textContent: site.name })));
  find("site").addEventListener("change", event => { state.site = +event.target.value; draw(); });
  find("step").max = data.steps.length - 1;
  find("step").addEventListener("input", event => { stop(); state.step = +event.target.value; draw(); });

  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; find("play").textContent = "Play"; find("play").setAttribute("aria-pressed", "false"); };
  find("play").addEventListener("click", () => {
    if (timer) return stop();
    if (state.step === data.steps.length - 1) state.step = -1;
    find("play").textContent = "Pause";
    find("play").setAttribute("aria-pressed", "true");
    const next = () => { state.step++; draw(); if (state.step >= data.steps.length - 1) stop(); };
    timer = setInterval(next, 500);
    next();
  });

  function chart(task) {
    const ns = "http://www.w3.org/2000/svg", w = 300, h = 120, pad = 34;
    const svg = document.createElementNS(ns, "svg");
    svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    svg.setAttribute("role", "img");
    find("charts").append(make("figure", {}, svg));
    const known = [...task.means.flat(), ...task.floor, ...task.oracle].filter(v => v !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const last = Math.max(data.steps.length - 1, 1);
    const x = i => pad + i / last * (w - pad - 62), y = v => 22 + (high - v) / (high - low || 1) * (h - 46);
    const add = (tag, attributes, text = "") => {
      const node = document.createElementNS(ns, tag);
      for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
      node.textContent = text;
      svg.append(node);
    };
    return () => {
      svg.replaceChildren();
      const values = task.means[state.site], now = values[state.step];
      add("text", { x: 0, y: 11, class: "t" }, `${task.title}: ${task.label}, ${task.better} is better`);
      for (const [name, v] of [["floor", task.floor[state.site]], ["oracle", task.oracle[state.site]]]) {
        if (v === null) continue;
        add("line", { x1: pad, x2: x(last), y1: y(v), y2: y(v), class: "level" });
        add("text", { x: x(last) + 6, y: y(v) + 4, class: "s" }, name);
      }
      for (const v of [low, high]) add("text", { x: pad - 6, y: y(v) + 4, class: "s e" }, v.toFixed(2));
      const path = values.map((v, i) => v === null ? "" : `${i && values[i - 1] !== null ? "L" : "M"}${x(i)} ${y(v)}`);
      add("path", { d: path.join(""), class: "line" });
      if (now !== null) add("circle", { cx: x(state.step), cy: y(now), r: 4.5, class: "dot" });
      add("text", { x: pad, y: h - 4, class: "s" }, `step ${data.steps[0]}`);
      add("text", { x: x(last), y: h - 4, class: "s e" }, `${data.steps.at(-1)}`);
      const words = now === null ? "no score" : `${task.label} ${now.toFixed(2)}`;
      svg.setAttribute("aria-label", `${task.title} at ${data.sites[state.site].name} by step; now ${words}`);
    };
  }

  function draw() {
    const image = data.images[state.image], site = data.sites[state.site], step = data.steps[state.step];
    find("caption").textContent = `“${image.caption}”`;
    find("step").value = state.step;
    find("site").value = state.site;
    find("step").setAttribute("aria-valuetext", `step ${step} of ${data.steps.at(-1)}`);
    find("at").textContent = `${step} of ${data.steps.at(-1)}`;
    finished.src = image.finished;
    data.tasks.forEach((t, k) => { labels[k].src = image.labels[t.key]; });
    const decoded = image.decoded.filter(s => s <= step).at(-1) ?? image.decoded[0];
    estimate.canvas.parentNode.hidden = decoded === undefined;
    if (decoded !== undefined) {
      const sheet = load(image.frames), { canvas } = estimate;
      const words = decoded === step ? "clean estimate" : `clean estimate of step ${decoded}`;
      estimate.caption.textContent = words;
      canvas.setAttribute("aria-label", words);
      if (sheet) {
        const width = sheet.naturalWidth / image.decoded.length, at = image.decoded.indexOf(decoded);
        Object.assign(canvas, { width, height: sheet.naturalHeight });
        canvas.getContext("2d").drawImage(sheet, -at * width, 0);
      }
    }
    data.tasks.forEach((t, k) => {
      const sheet = load(image.maps[t.key]), { canvas } = maps[k], [rows, columns] = site.grid;
      canvas.setAttribute("aria-label", `${t.title}, prediction of the probe at ${site.name}, step ${step}`);
      if (!sheet) return;
      Object.assign(canvas, { width: columns, height: rows });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(sheet, -state.site * data.tile[1], -state.step * data.tile[0]);
      const pixels = context.getImageData(0, 0, columns, rows);
      for (let i = 0; i < pixels.data.length; i += 4) {
        const colour = palettes[k][Math.min(63, pixels.data[i] >> 2)];
        for (let c = 0; c < 3; c++) pixels.data[i + c] = colour[c];
      }
      context.putImageData(pixels, 0, 0);
    });
    charts.forEach(render => render());
    const scores = data.tasks.map(t => {
      const v = t.means[state.site][state.step];
      return `${t.title}: ${t.label} ${v === null ? "—" : v.toFixed(2)}`;
    });
    find("said").textContent = `${site.name}, step ${step}. Mean over ${data.tasks[0].n ?? "the"} test images: ${scores.join("; ")}.`;
  }

  for (const node of all(".static", root.parentNode)) node.hidden = true;
  root.hidden = false;
  draw();
  return {
    data,
    choose(name, step) {
      const site = data.sites.findIndex(s => s.name === name), at = data.steps.indexOf(step);
      if (site < 0 || at < 0) return false;
      stop();
      Object.assign(state, { site, step: at });
      draw();
      return true;
    },
  };
}
