// The filters of the list: what they ask of an entry, their controls, and how the address spells them.

// Each is one name in the address: `c0=0.5..0.9`, `density=..1` (per cent), `status=scored`, `variant=topk`, `layer=9`.
const filters = {}; // name -> text, as in the address; absent when it asks nothing
const RANGE = /^(-?[\d.]*(?:e-?\d+)?)\.\.(-?[\d.]*(?:e-?\d+)?)$/i;

const STATUS = {
  scored: (entry) => entry.values.some((value) => value !== null),
  unscored: (entry) => entry.values.every((value) => value === null),
  explained: (entry) => entry.text !== null,
  unexplained: (entry) => entry.text === null,
};
const STATUS_LABELS = { scored: "scored", unscored: "without a score", explained: "explained", unexplained: "without an explanation" };

// What there is to filter by: [name, label, kind, value of an entry, choices]. Needs the head of the index.
const fields = () => {
  const own = (list) => [...new Set(list)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const states = head.states.map((state) => [`state:${state}`, state]);
  const all = head.columns.flatMap((column, n) => (column.primary ? [[`c${n}`, `${capital(column.method)}, ${column.metric}`, "range", (entry) => entry.values[n]]] : []));
  all.push(["density", "Density in %", "range", (entry) => (entry.density === null ? null : 100 * entry.density)]);
  all.push(["status", "Status", "choice", null, [...Object.entries(STATUS_LABELS), ...states]]);
  if (own(head.variants).length > 1) all.push(["variant", "Variant", "choice", (entry) => head.variants[entry.group], own(head.variants).map((name) => [name, name])]);
  if (own(head.layers).length > 1) all.push(["layer", "Layer", "choice", (entry) => head.layers[entry.group], own(head.layers).map((name) => [name, name])]);
  return all;
};

const bounds = (text) => {
  const found = RANGE.exec(text || "..");
  const read = (part) => (part === "" || Number.isNaN(Number(part)) ? null : Number(part));
  return found ? [read(found[1]), read(found[2])] : [null, null];
};

// The test that all set filters together make.
const passes = () => {
  const tests = fields().filter(([name]) => filters[name]).map(([name, , kind, value]) => {
    if (kind === "range") {
      const [low, high] = bounds(filters[name]);
      if (low === null && high === null) return () => true;
      return (entry) => value(entry) !== null && (low === null || value(entry) >= low) && (high === null || value(entry) <= high);
    }
    if (name !== "status") return (entry) => value(entry) === filters[name];
    return filters[name].startsWith("state:") ? (entry) => entry.state === filters[name].slice(6) : STATUS[filters[name]] || (() => true);
  });
  return (entry) => tests.every((test) => test(entry));
};

const buildFilters = (changed) => {
  const box = $("filters");
  const set = (name, text) => {
    if (text) filters[name] = text;
    else delete filters[name];
    changed();
  };
  for (const [name, label, kind, , choices] of fields()) {
    if (kind === "choice") {
      const select = el("select", { id: `f-${name}` }, el("option", { value: "" }, "all"), ...choices.map(([value, text]) => el("option", { value }, text)));
      select.addEventListener("change", () => set(name, select.value));
      box.append(el("label", {}, `${label} `, select));
      continue;
    }
    const ends = ["from", "to"].map((end) => el("input", { type: "number", step: "any", id: `f-${name}-${end}`, "aria-label": `${label}, ${end}`, placeholder: end }));
    for (const input of ends) {
      input.addEventListener("input", () => set(name, ends.some((one) => one.value !== "") ? ends.map((one) => one.value).join("..") : ""));
    }
    box.append(el("fieldset", {}, el("legend", {}, label), ends[0], " – ", ends[1]));
  }
  const clear = el("button", { type: "button", id: "clear" }, "Clear filters");
  clear.addEventListener("click", () => {
    for (const name of Object.keys(filters)) delete filters[name];
    showFilters();
    changed();
  });
  box.append(clear);
};

// Controls say what the address said.
const showFilters = () => {
  for (const [name, , kind] of fields()) {
    if (kind === "choice") $(`f-${name}`).value = filters[name] || "";
    else {
      const [low, high] = bounds(filters[name]);
      $(`f-${name}-from`).value = low === null ? "" : String(low);
      $(`f-${name}-to`).value = high === null ? "" : String(high);
    }
  }
};

const openFilters = (wanted) => {
  $("filters").hidden = !wanted;
  $("filter").setAttribute("aria-expanded", String(wanted));
};

const countFilters = () => {
  const n = Object.keys(filters).length;
  $("filter").textContent = n ? `Filters (${n})` : "Filters";
};
