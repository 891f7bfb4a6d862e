"use strict";
// No library and nothing loaded. Texts go in as text nodes only, so nothing in the records can become markup.

const data = JSON.parse(document.getElementById("data").textContent);
data.columns.chosen = data.chosen;
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- theme -------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

function remembered(theme) {
  try { // a browser may refuse storage to a file; the choice then holds until the page is closed
    if (theme) localStorage.setItem("sam-bench-theme", theme);
    return theme || localStorage.getItem("sam-bench-theme");
  } catch { return theme; }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("#theme").textContent = `Theme: ${theme}`;
}

setTheme(THEMES.includes(remembered()) ? remembered() : "auto");
find("#theme").hidden = false;
find("#theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  setTheme(next);
  remembered(next);
});

// ---- sorting -----------------------------------------------------------------------------------------------

// A cell's leading number: "94.97 ± 1.08", "+0.57 [-0.83, +1.97]", "<0.001", "1,200", "4/5"; NaN where there is none.
function leading(text) {
  const match = /^\s*[<>~]?\s*([+\-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+\-]?\d+)?)/i.exec(text);
  if (!match) return NaN;
  const value = Number(match[1].replaceAll(",", "").replace("−", "-"));
  return text.trim().startsWith("<") ? value - 1e-9 : value;
}

const byText = new Intl.Collator("en", { numeric: true }).compare;
const nothing = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);

// Smaller first or larger first; what is missing comes last either way.
function compare(a, b, direction) {
  if (nothing(a) || nothing(b)) return nothing(a) - nothing(b);
  return direction * (typeof a === "number" && typeof b === "number" ? a - b : byText(String(a), String(b)));
}

// Turn a header into a button: largest first, then smallest, then as it was.
function sortable(header, sort) {
  const button = element("button", { type: "button" }, ...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const next = { none: "descending", descending: "ascending", ascending: "none" }[header.getAttribute("aria-sort") || "none"];
    for (const other of all("th", header.parentElement)) other.removeAttribute("aria-sort");
    if (next !== "none") header.setAttribute("aria-sort", next);
    sort({ none: 0, ascending: 1, descending: -1 }[next]);
  });
}

for (const table of all("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((header, place) => sortable(header, (direction) => {
    const texts = rows.map((row) => row.cells[place].textContent.trim());
    const numbers = texts.map(leading);
    const numeric = texts.every((text, at) => text === "–" || text === "" || !Number.isNaN(numbers[at]));
    const keys = texts.map((text, at) => (text === "–" ? null : numeric ? numbers[at] : text));
    const order = rows.map((_, at) => at);
    if (direction) order.sort((a, b) => compare(keys[a], keys[b], direction) || a - b);
    body.append(...order.map((at) => rows[at]));
    table.classList.toggle("sorted", direction !== 0);
  }));
}

// ---- figures -----------------------------------------------------------------------------------------------

const SCALES = [100, 150, 200, 300, 400];
const viewer = find("#viewer"), canvas = find(".canvas", viewer), picture = find("img", canvas);
let scale = 100, ratio = 1;

// At 100% the whole figure is seen.
const fit = () => Math.min(canvas.clientWidth, canvas.clientHeight * ratio);

function setScale(next) {
  const centre = (canvas.scrollLeft + canvas.clientWidth / 2) / scale;
  const middle = (canvas.scrollTop + canvas.clientHeight / 2) / scale;
  scale = next;
  picture.style.width = `${fit() * scale / 100}px`;
  find("#viewer-scale").textContent = `${scale}%`;
  canvas.scrollTo(centre * scale - canvas.clientWidth / 2, middle * scale - canvas.clientHeight / 2);
}

const zoom = (step) => setScale(SCALES[Math.min(SCALES.length - 1, Math.max(0, SCALES.indexOf(scale) + step))]);

for (const button of all("button.zoom")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const image = find("img", button);
    [picture.src, picture.alt, ratio] = [image.src, image.alt, image.naturalWidth / image.naturalHeight];
    find("#viewer-title").textContent = button.closest("figure").id.replace("figure-", "");
    viewer.showModal();
    setScale(100);
    canvas.focus();
  });
}
for (const button of all("[data-zoom]", viewer)) button.addEventListener("click", () => zoom(Number(button.dataset.zoom)));
find("[data-close]", viewer).addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  const step = { "+": 1, "=": 1, "-": -1 }[event.key];
  if (step) zoom(step);
  if (event.key === "0") setScale(100);
});
picture.addEventListener("dblclick", () => setScale(scale === 100 ? 200 : 100));
canvas.addEventListener("pointermove", (event) => {
  if (event.buttons === 1 && event.pointerType === "mouse") canvas.scrollBy(-event.movementX, -event.movementY);
});
picture.draggable = false;
addEventListener("resize", () => { if (viewer.open) setScale(scale); });

// ---- runs: values ------------------------------------------------------------------------------------------

function value(name, run) {
  const column = data.columns[name];
  if (!column) return null;
  if ("all" in column) return column.all;
  return "texts" in column ? column.texts[column.of[run]] : column.values[run];
}

const varies = (name) => name in data.columns && !("all" in data.columns[name]);
const digits = data.metric.scale > 1 ? 2 : 4;
const score = (number) => (number * data.metric.scale).toFixed(digits);
const title = (run) => value("optimizer", run) + (value("config", run) ? ` (${value("config", run)})` : "");
const seconds = (number) => (number < 100 ? number.toFixed(2) : Math.round(number).toLocaleString("en"));
const unit = data.metric.unit ? ` (${data.metric.unit})` : "";

const COLUMNS = [
  { head: "optimizer", key: title, cell: named },
  { head: "condition", key: (run) => value("condition", run), only: varies("condition"), minor: true },
  { head: "phase", key: (run) => value("phase", run), only: varies("phase"), minor: true },
  { head: "seed", key: (run) => value("seed", run), number: true },
  { head: `test ${data.metric.name}${unit}`, key: (run) => value(data.metric.test, run), form: score, number: true },
  { head: `validation${unit}`, key: (run) => value(data.metric.val, run), form: score, number: true, minor: true },
  { head: "gap", key: (run) => value(data.metric.gap, run), form: score, number: true, minor: true },
  { head: "time (s)", key: (run) => value("train_seconds", run), form: seconds, number: true, minor: true },
  { head: "curve", cell: spark, only: data.curves.epochs.some((epochs) => epochs.length > 1), minor: true },
  { head: "status", key: (run) => value("status", run), cell: (run) => element("span", { class: `status ${value("status", run)}` }, value("status", run)) },
].filter((column) => column.only !== false);

function named(run) {
  const chip = element("span", { class: "chip", "aria-hidden": "true" });
  chip.style.background = data.labels[value("optimizer", run)] || "var(--ink)";
  const button = element("button", { type: "button", class: "expand", "aria-expanded": "false" }, chip, title(run));
  if (value("chosen", run)) button.append(element("span", { class: "tag" }, "chosen"));
  button.addEventListener("click", () => toggle(button, run));
  if (!varies("condition")) return button;
  const both = document.createDocumentFragment(); // on a phone there is no room for a column of conditions
  both.append(button, element("span", { class: "under" }, value("condition", run)));
  return both;
}

// ---- runs: curves ------------------------------------------------------------------------------------------

const { curves } = data;

// The points [epoch, metric] of a series of a run.
function points(series, run) {
  const heights = (curves.drawn[curves.series.indexOf(series)] || [])[run] || [];
  const epochs = curves.epochs[curves.of[run]] || [];
  return epochs
    .map((epoch, at) => [epoch, curves.low + (curves.high - curves.low) * heights[at] / curves.levels])
    .filter((_, at) => heights[at] !== null && heights[at] !== undefined);
}

const line = (found, x, y) => found.map(([epoch, height], at) => `${at ? "L" : "M"}${x(epoch).toFixed(1)} ${y(height).toFixed(1)}`).join("");

function spark(run) {
  const found = points("test", run).length ? points("test", run) : points("val", run);
  if (found.length < 2) return "";
  const last = found[found.length - 1][0], heights = found.map((point) => point[1]);
  const low = Math.min(...heights), span = Math.max(...heights) - low || 1;
  const path = line(found, (epoch) => 2 + 86 * epoch / last, (height) => 20 - 18 * (height - low) / span);
  return shape("svg", { class: "spark", viewBox: "0 0 90 22", width: 90, height: 22, "aria-hidden": "true" }, shape("path", { d: path }));
}

function chart(run) {
  const drawn = curves.series.map((series) => [series, points(series, run)]).filter(([, found]) => found.length > 1);
  if (!drawn.length) return "";
  const heights = drawn.flatMap(([, found]) => found.map((point) => point[1]));
  const low = Math.min(...heights), high = Math.max(...heights), last = Math.max(...drawn.map(([, found]) => found[found.length - 1][0]));
  const x = (epoch) => 52 + 300 * epoch / last, y = (height) => 176 - 160 * (height - low) / (high - low || 1);
  const made = shape("svg", { class: "chart", viewBox: "0 0 480 212", role: "img", "aria-label": `${data.metric.name} of this run over ${last} epochs` });
  for (let tick = 0; tick <= 4; tick++) {
    const height = low + (high - low) * tick / 4;
    made.append(
      shape("line", { x1: 52, x2: 352, y1: y(height), y2: y(height), class: "grid" }),
      shape("text", { x: 46, y: y(height) + 3.5, "text-anchor": "end" }, score(height)),
    );
  }
  for (const tick of [0, Math.round(last / 2), last]) made.append(shape("text", { x: x(tick), y: 192, "text-anchor": "middle" }, String(tick)));
  made.append(shape("text", { x: 202, y: 208, "text-anchor": "middle" }, "epoch"));
  const names = { train: data.train, val: "validation", test: "test" };
  // The names stand at the ends of the curves, pushed apart where these meet.
  let above = -Infinity;
  for (const [series, found] of drawn.sort((a, b) => y(a[1][a[1].length - 1][1]) - y(b[1][b[1].length - 1][1]))) {
    made.append(shape("path", { d: line(found, x, y), class: series }));
    above = Math.max(above + 13, y(found[found.length - 1][1]) + 3.5);
    made.append(shape("text", { x: 358, y: above, class: series }, names[series]));
  }
  return made;
}

// ---- runs: one in full -------------------------------------------------------------------------------------

const GROUPS = { hyperparameters: "Hyperparameters", measured: "Measured after the last epoch", cost: "Cost", circumstances: "Circumstances" };

function command(text) {
  const code = element("code", {}, text), button = element("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code); // for a browser that keeps the clipboard from files
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = "Selected"; }
  });
  return element("p", { class: "command" }, code, " ", button);
}

function full(run) {
  const id = String(value("run_id", run));
  const told = value("error", run) ? [element("p", {}, element("span", { class: "status failed" }, "reason"), " ", element("code", {}, String(value("error", run))))] : [];
  const lists = Object.entries(GROUPS).map(([group, name]) => {
    const terms = data.groups[group].filter((column) => !nothing(value(column, run))).map((column) =>
      element("div", {}, element("dt", {}, column), element("dd", {}, String(value(column, run)))));
    return terms.length ? element("section", {}, element("h3", {}, name), element("dl", { class: "values" }, ...terms)) : "";
  });
  const head = element("div", {}, element("h3", {}, `Run ${id}`), ...told, element("p", { class: "caption" }, "Do it again and compare:"), command(`bench verify ${data.name} ${id}`));
  return element("div", { class: "full" }, element("div", { class: "first" }, head, chart(run)), element("div", { class: "groups" }, ...lists));
}

function toggle(button, run) {
  const row = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) { row.nextElementSibling.remove(); return; }
  row.after(element("tr", { class: "details" }, element("td", { colspan: COLUMNS.length }, full(run))));
}

// ---- runs: the list, a page at a time ----------------------------------------------------------------------

const PAGE = 25;
const everything = Array.from({ length: data.count }, (_, run) => run);
const form = find("#filters"), list = find("#list"), pager = find("#pager");
let shown = everything, page = 0, key = null, direction = 0;

for (const name of ["optimizer", "config", "chosen", "condition", "phase", "seed", "status"]) {
  if (!varies(name)) continue;
  const values = [...new Set(everything.map((run) => value(name, run)))].filter((one) => !nothing(one));
  if (name !== "optimizer" && name !== "condition") values.sort((a, b) => compare(a, b, 1));
  const options = values.map((one) => element("option", { value: String(one) }, String(one)));
  const select = element("select", { name }, element("option", { value: "" }, "all"), ...options);
  form.insertBefore(element("label", {}, { config: "setting" }[name] || name, " ", select), form.firstElementChild.matches("label:has(input)") ? form.firstElementChild : find("label:has(input)", form));
}

function filter() {
  const chosen = all("select", form).filter((select) => select.value).map((select) => [select.name, select.value]);
  const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = everything.filter((run) => {
    if (!chosen.every(([name, one]) => String(value(name, run)) === one)) return false;
    if (!words.length) return true;
    const text = [title(run), value("condition", run), value("run_id", run), value("status", run), value("error", run)].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  arrange();
}

function arrange() {
  if (direction) {
    const keys = new Map(shown.map((run) => [run, key(run)]));
    shown = [...shown].sort((a, b) => compare(keys.get(a), keys.get(b), direction) || a - b);
  } else shown = [...shown].sort((a, b) => a - b);
  page = 0;
  show();
}

function show() {
  const start = page * PAGE, part = shown.slice(start, start + PAGE), pages = Math.max(1, Math.ceil(shown.length / PAGE));
  find("tbody", list).replaceChildren(...part.map((run) => element("tr", {}, ...COLUMNS.map((column, place) => {
    const plain = column.key && column.key(run);
    const content = column.cell ? column.cell(run) : nothing(plain) ? "–" : (column.form || String)(plain);
    const kind = [column.number && "number", column.minor && "minor"].filter(Boolean).join(" ");
    return element(place ? "td" : "th", { ...(place ? {} : { scope: "row" }), ...(kind ? { class: kind } : {}) }, content);
  }))));
  find("#found").textContent = `${shown.length.toLocaleString("en")} of ${data.count.toLocaleString("en")} runs`;
  find("#at").textContent = `Page ${page + 1} of ${pages}`;
  const [before, after] = all("button", pager);
  [before.disabled, after.disabled] = [page === 0, page === pages - 1];
  pager.hidden = pages === 1;
}

for (const column of COLUMNS) {
  const kind = [column.number && "number", column.minor && "minor"].filter(Boolean).join(" ");
  const header = element("th", { scope: "col", ...(kind ? { class: kind } : {}) }, column.head);
  find("thead tr", list).append(header);
  if (column.key) sortable(header, (next) => { [key, direction] = [column.key, next]; arrange(); });
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
for (const button of all("button", pager)) {
  button.addEventListener("click", () => {
    page += Number(button.dataset.step);
    show();
    list.scrollIntoView({ block: "nearest" });
  });
}
for (const button of all("button.show")) {
  button.hidden = !varies("status");
  button.addEventListener("click", () => {
    form.reset();
    form.elements.status.value = button.dataset.status;
    setTimeout(() => { form.elements.status.value = button.dataset.status; filter(); form.elements.status.focus(); });
  });
}
form.hidden = list.hidden = false;
show();
