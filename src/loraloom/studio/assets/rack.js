// The rack of adapters. Python sets props.entries (what is in the folders) and props.value (the weights);
// turning anything sets props.value and triggers 'turn'. Names are only ever put in as text.
const root = element.querySelector(".ll-rack");
const LOW = -1, HIGH = 2, STEP = 0.05, PAUSE = 120;
let timer = null;
let query = "";
let onlyOn = false;

const plain = (value) => JSON.parse(JSON.stringify(value ?? {}));
const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};

let uses = plain(props.value);
const fresh = () => ({ on: false, unet: 1, te: 1, split: false });
const use = (name) => (uses[name] ??= fresh());

const tell = (pause) => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    props.value = plain(uses);
    trigger("turn");
  }, pause);
};

const heading = make("div", { class: "ll-rack-head" });
const search = make("input", { type: "search", placeholder: "Search adapters", "aria-label": "Search adapters" });
const filter = make("button", { type: "button", class: "ll-small", "aria-pressed": "false" });
const clear = make("button", { type: "button", class: "ll-small", text: "All off" });
heading.append(search, filter, clear);
const list = make("ul", { class: "ll-rack-list", "aria-label": "Adapters" });
const empty = make("p", { class: "ll-quiet" });
root.append(heading, list, empty);

const turner = (entry, part, label) => {
  const bounds = { min: LOW, max: HIGH, step: STEP };
  const range = make("input", { type: "range", ...bounds, "aria-label": `${entry.name}: ${label}` });
  const number = make("input", { type: "number", min: -10, max: 10, step: STEP, "aria-label": `${entry.name}: ${label}, as a number` });
  const show = () => {
    range.value = use(entry.name)[part];
    if (document.activeElement !== number) number.value = Number(use(entry.name)[part]).toFixed(2);
    const share = (Math.min(HIGH, Math.max(LOW, use(entry.name)[part])) - LOW) / (HIGH - LOW);
    range.style.setProperty("--ll-share", `${share * 100}%`);
  };
  const turn = (value, pause) => {
    if (!Number.isFinite(value)) return;
    const mine = use(entry.name);
    mine[part] = Math.round(value * 1000) / 1000;
    if (!mine.split) mine.te = mine.unet;
    mine.on = true;
    show();
    refresh();
    tell(pause);
  };
  range.addEventListener("input", () => turn(range.valueAsNumber, PAUSE));
  range.addEventListener("dblclick", () => turn(1, 0));
  number.addEventListener("input", () => turn(number.valueAsNumber, 2 * PAUSE));
  number.addEventListener("blur", show);
  const row = make("div", { class: "ll-turner" }, make("span", { class: "ll-turner-name", text: label }), range, number);
  return { row, show };
};

let rows = [];
const build = () => {
  list.replaceChildren();
  rows = (props.entries ?? []).map((entry) => {
    const toggle = make("input", { type: "checkbox", role: "switch", "aria-label": `Use ${entry.name}` });
    const split = make("button", {
      type: "button", class: "ll-small", text: "Split", "aria-label": `${entry.name}: separate weight for the text encoder`,
      title: "Separate weight for the text encoder",
    });
    const unet = turner(entry, "unet", "weight");
    const te = turner(entry, "te", "text");
    const thumb = entry.thumb
      ? make("img", { src: entry.thumb, alt: "", class: "ll-thumb", loading: "lazy" })
      : make("span", { class: "ll-thumb ll-thumb-none", "aria-hidden": "true", text: entry.name.slice(0, 1).toUpperCase() });
    const name = make("span", { class: "ll-name", text: entry.name, title: entry.name });
    const info = make("span", { class: "ll-info", text: entry.info });
    const label = make("label", { class: "ll-label" }, toggle, make("span", { class: "ll-words" }, name, info));
    const head = make("div", { class: "ll-row-head" }, label, split);
    const item = make("li", { class: "ll-row" }, thumb, make("div", { class: "ll-row-body" }, head, unet.row, te.row));
    toggle.addEventListener("change", () => {
      use(entry.name).on = toggle.checked;
      refresh();
      tell(0);
    });
    split.addEventListener("click", () => {
      const mine = use(entry.name);
      mine.split = !mine.split;
      const turned = !mine.split && mine.te !== mine.unet;
      if (!mine.split) mine.te = mine.unet;
      refresh();
      if (mine.on && turned) tell(0);
    });
    const show = () => {
      const mine = use(entry.name);
      toggle.checked = mine.on;
      item.classList.toggle("ll-on", mine.on);
      item.classList.toggle("ll-split", mine.split);
      split.setAttribute("aria-pressed", String(mine.split));
      te.row.hidden = !mine.split;
      unet.row.querySelector(".ll-turner-name").textContent = mine.split ? "U-Net" : "weight";
      unet.show();
      te.show();
      const words = `${entry.name} ${entry.info}`.toLowerCase();
      const found = query.split(/\s+/).every((word) => words.includes(word));
      item.hidden = !found || (onlyOn && !mine.on);
      return !item.hidden;
    };
    list.append(item);
    return { show, entry };
  });
  refresh();
};

const refresh = () => {
  const shown = rows.map((row) => row.show()).filter(Boolean).length;
  const on = rows.filter((row) => use(row.entry.name).on).length;
  filter.textContent = `${on} of ${rows.length} on`;
  filter.setAttribute("aria-pressed", String(onlyOn));
  filter.title = onlyOn ? "Show all adapters" : "Show only those that are on";
  clear.disabled = on === 0;
  search.hidden = rows.length < 2;
  filter.hidden = clear.hidden = rows.length === 0;
  empty.hidden = shown > 0;
  empty.textContent = rows.length ? "No adapter of this name." : "No adapter in the folders yet: put .safetensors files there, they appear here.";
};

search.addEventListener("input", () => { query = search.value.trim().toLowerCase(); refresh(); });
filter.addEventListener("click", () => { onlyOn = !onlyOn; refresh(); });
clear.addEventListener("click", () => {
  for (const mine of Object.values(uses)) mine.on = false;
  refresh();
  tell(0);
});
watch("entries", build);
watch("value", () => { uses = plain(props.value); refresh(); });
build();
