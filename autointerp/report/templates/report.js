// Loads the data, draws the list of latents, opens cards, and keeps the address in step.

const PAGE = 50;
const $ = (id) => document.getElementById(id);
const state = { search: "", sort: "latent", descending: false, group: "", limit: PAGE, targets: [] };
const entries = [];
const open = new Map(); // position of an entry -> the table row of its card
const shards = new Map();
let head = null;
let pinned = [];
const waiting = {};

// ---- loading -------------------------------------------------------------------------------------------------

window.__autointerp_add = (content) => {
  if (content.kind === "cards") {
    waiting[content.shard] = content.cards;
    return;
  }
  if (content.head) head = content.head;
  for (const [latent, group, density, max, text, status, more, values, controls, state] of content.rows) {
    const shown = text === null ? "" : text;
    entries.push({
      at: entries.length, latent, group, density, max, text, status, more, values, controls, state,
      haystack: `${latent} ${shown}`.toLowerCase(),
    });
  }
};

const absent = (file) => new Error(`${file} is missing or damaged: copy the whole report folder, or write it again`);

const load = (file) =>
  new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = file;
    script.onload = done;
    script.onerror = () => failed(absent(file));
    document.head.append(script);
  });

const numbered = (name, n) => `${name}-${String(n).padStart(3, "0")}.js`;

const cardOf = async (entry) => {
  const shard = Math.floor(entry.at / head.per_shard);
  if (!shards.has(shard)) shards.set(shard, load(numbered("data", shard)));
  await shards.get(shard);
  if (!waiting[shard]) throw absent(numbered("data", shard));
  return waiting[shard][entry.at % head.per_shard];
};

// The first part of the index is enough to show the list as it stands in the tables. Whatever needs to see all latents
// (a search, a filter, another order) asks for the rest, once.
let asked = false;
const loadRest = async () => {
  if (asked || entries.length >= head.latents) return;
  asked = true;
  try {
    for (let part = 1; entries.length < head.latents; part += 1) {
      await load(numbered("index", part));
      if (part % 8 === 0) apply(false);
    }
    apply(false);
  } catch (error) {
    notice(error.message);
  }
};

const notice = (text) => {
  $("notice").textContent = text;
  $("notice").hidden = !text;
};

// ---- the list -------------------------------------------------------------------------------------------------------

const sortKeys = () => [
  ["latent", "latent", (entry) => entry.at],
  ["density", "density", (entry) => entry.density],
  ["max", "max activation", (entry) => entry.max],
  ...head.columns.map((column, n) => [`c${n}`, column.label, (entry) => entry.values[n]]),
  ...head.columns.flatMap((column, n) =>
    column.primary
      ? [[`d${n}`, `${column.label}, above control`, (entry) =>
          entry.values[n] === null || entry.controls[n] === null ? null : entry.values[n] - entry.controls[n]]]
      : []),
];

const visibleColumns = () =>
  head.columns.map((column, n) => ({ ...column, n })).filter((column) => column.primary || state.sort === `c${column.n}`);

const plainOrder = () => state.search === "" && state.group === "" && state.sort === "latent" && !state.descending && !Object.keys(filters).length;

const matching = () => {
  if (!plainOrder()) loadRest();
  const test = passes();
  const terms = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = entries.filter(
    (entry) => (state.group === "" || entry.group === Number(state.group)) && terms.every((term) => entry.haystack.includes(term)) && test(entry),
  );
  const key = (sortKeys().find(([name]) => name === state.sort) || sortKeys()[0])[2];
  const sign = state.descending ? -1 : 1;
  found.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.at - b.at; // no value: last, either way
    return sign * (x - y) || a.at - b.at;
  });
  return found;
};

const headCell = (key, label, small, numeric) => {
  const sorted = state.sort === key;
  const button = el("button", { type: "button" }, label, sorted ? (state.descending ? " ↓" : " ↑") : null, small ? el("small", {}, small) : null);
  button.addEventListener("click", () => {
    setSort(key, sorted ? !state.descending : key !== "latent");
    const again = $("list").tHead.querySelector(`[data-key="${key}"] button`);
    if (again) again.focus();
  });
  return el("th", { scope: "col", class: numeric && "n", "data-key": key, "aria-sort": sorted && (state.descending ? "descending" : "ascending") }, button);
};

const drawHead = () => {
  const row = el("tr", {}, headCell("latent", "Latent"));
  if (head.groups.length > 1) row.append(el("th", { scope: "col" }, el("small", {}, "SAE")));
  row.append(el("th", { scope: "col" }, el("small", {}, "Explanation")), headCell("density", "Density", null, true));
  for (const column of visibleColumns()) {
    row.append(headCell(`c${column.n}`, capital(column.method), column.label.slice(column.method.length + 2), true));
  }
  $("list").tHead.replaceChildren(row);
};

const entryRow = (entry) => {
  const button = el("button", { type: "button", "aria-expanded": String(open.has(entry.at)), "aria-controls": `card-${entry.at}` }, String(entry.latent));
  const said = entry.text === null
    ? el("span", { class: "failed" }, `no explanation: ${words(entry.status)}`)
    : el("span", {}, entry.text, entry.more ? el("small", {}, ` and ${entry.more} more`) : null);
  const row = el("tr", { class: "entry", id: `entry-${entry.at}` }, el("th", { scope: "row", class: "id" }, button));
  if (head.groups.length > 1) row.append(el("td", { class: "sae" }, head.groups[entry.group]));
  row.append(el("td", { class: "what", dir: "auto" }, said), el("td", { class: "n", "data-label": "Density" }, share(entry.density)));
  for (const column of visibleColumns()) {
    const control = entry.controls[column.n];
    row.append(
      el("td", { class: "n", "data-label": column.primary ? capital(column.method) : capital(column.label) },
        figure(entry.values[column.n]),
        control === null ? null : el("span", { class: "vs", title: `control ${figure(control)}` }, figure(control))),
    );
  }
  row.addEventListener("click", (event) => {
    // The whole row answers the mouse, except at the end of a drag that selected text.
    if (event.target === button || !String(getSelection())) toggle(entry);
  });
  return row;
};

const draw = () => {
  const found = matching();
  const first = pinned.map((at) => entries[at]);
  const rest = found.filter((entry) => !pinned.includes(entry.at));
  const rows = [...first, ...rest.slice(0, state.limit)];
  drawHead();
  const span = 3 + (head.groups.length > 1) + visibleColumns().length;
  $("list").tBodies[0].replaceChildren(
    ...rows.flatMap((entry) => {
      const card = open.get(entry.at);
      if (card) card.firstChild.colSpan = span;
      return card ? [entryRow(entry), card] : [entryRow(entry)];
    }),
  );
  const all = plainOrder() ? head.latents - first.length : rest.length;
  const left = all - Math.min(state.limit, rest.length);
  $("more").hidden = left === 0;
  $("more").textContent = `Show ${Math.min(PAGE * 4, left)} more of ${whole(left)}`;
  const matches = plainOrder() ? head.latents : found.length;
  const still = !plainOrder() && entries.length < head.latents ? ", loading" : "";
  const control = head.columns.some((column) => column.primary) ? " Small figures: control." : "";
  $("count").textContent = `${whole(matches)} of ${whole(head.latents)} latents${still}.${control}`;
  $("direction").textContent = state.descending ? "↓ descending" : "↑ ascending";
  $("sort").value = state.sort;
  countFilters();
};

const setSort = (key, descending) => {
  Object.assign(state, { sort: key, descending, limit: PAGE });
  draw();
  remember();
};

// ---- opening cards --------------------------------------------------------------------------------------------------

const toggle = async (entry, wanted) => {
  const isOpen = open.has(entry.at);
  if (isOpen === (wanted ?? !isOpen)) return;
  if (isOpen) {
    open.get(entry.at).remove();
    open.delete(entry.at);
  } else {
    const cell = el("td", { colspan: $("list").tHead.rows[0].cells.length }, el("article", { class: "none" }, "Loading…"));
    const row = el("tr", { class: "card", id: `card-${entry.at}` }, cell);
    open.set(entry.at, row);
    const at = $(`entry-${entry.at}`);
    if (at) at.after(row);
    cardOf(entry).then(
      (card) => cell.replaceChildren(article(entry, card)),
      (error) => cell.replaceChildren(el("article", { class: "none" }, error.message)),
    );
  }
  const button = document.querySelector(`#entry-${entry.at} button`);
  if (button) button.setAttribute("aria-expanded", String(!isOpen));
  remember();
};

// ---- address --------------------------------------------------------------------------------------------------------

// `#latent=17` opens a card, `#latent=17@1` that of the second SAE; `#search=`, `#sort=`, `#sae=` and the
// names of filters set the list.
const recall = () => {
  const given = new URLSearchParams(location.hash.slice(1));
  state.search = given.get("search") || "";
  const sort = /^(.*?)(-desc)?$/.exec(given.get("sort") || "latent");
  Object.assign(state, { sort: sort[1], descending: Boolean(sort[2]), group: given.get("sae") || "", limit: PAGE });
  for (const [name] of fields()) {
    if (given.get(name)) filters[name] = given.get(name);
    else delete filters[name];
  }
  showFilters();
  if (Object.keys(filters).length) openFilters(true);
  state.targets = given.getAll("latent").map((target) => target.split("@"));
  $("search").value = state.search;
  $("group").value = state.group;
};

const remember = () => {
  const parts = new URLSearchParams();
  if (state.search) parts.set("search", state.search);
  if (state.group !== "") parts.set("sae", state.group);
  if (state.sort !== "latent" || state.descending) parts.set("sort", state.sort + (state.descending ? "-desc" : ""));
  for (const [name, text] of Object.entries(filters)) parts.set(name, text);
  for (const at of open.keys()) {
    parts.append("latent", entries[at].latent + (head.groups.length > 1 ? `@${entries[at].group}` : ""));
  }
  history.replaceState(null, "", `#${parts}`);
};

const meet = () => {
  const [targets, all] = [state.targets, entries];
  const wanted = all.filter((entry) => targets.some(([latent, group]) =>
    String(entry.latent) === latent && (group === undefined || String(entry.group) === group || head.saes[entry.group] === group)));
  pinned = wanted.map((entry) => entry.at);
  return wanted;
};

const apply = (scroll) => {
  const wanted = meet();
  const found = (latent, group) => wanted.some((entry) => String(entry.latent) === latent && (group === undefined || String(entry.group) === group));
  if (state.targets.some(([latent, group]) => !found(latent, group))) loadRest();
  draw();
  for (const entry of wanted) toggle(entry, true);
  const missing = entries.length >= head.latents ? state.targets.filter(([latent]) => !wanted.some((entry) => String(entry.latent) === latent)) : [];
  notice(missing.length ? `Latent ${missing.map(([latent]) => latent).join(", ")} is not in this report: it was neither explained nor scored.` : head.latents ? "" : "No latent was explained or scored.");
  if (scroll && wanted.length) $("latents").scrollIntoView();
};

const start = async () => {
  await load(numbered("index", 0));
  for (const [key, label] of sortKeys()) $("sort").append(el("option", { value: key }, label));
  $("group").append(el("option", { value: "" }, "all"), ...head.groups.map((label, n) => el("option", { value: String(n) }, label)));
  $("group-label").hidden = head.groups.length < 2;
  buildFilters(() => {
    state.limit = PAGE;
    pinned = [];
    draw();
    remember();
  });
  $("tools").hidden = false;
  recall();
  apply(true);
  window.addEventListener("hashchange", () => {
    const place = document.getElementById(location.hash.slice(1));
    if (place) { // a place on the page, not a state of the list
      if (place.tagName === "DETAILS") place.open = true;
      return;
    }
    recall();
    apply(true);
  });
};

$("tools").addEventListener("submit", (event) => event.preventDefault());
$("search").addEventListener("input", () => {
  Object.assign(state, { search: $("search").value.trim(), limit: PAGE });
  pinned = [];
  draw();
  remember();
});
$("group").addEventListener("change", () => {
  Object.assign(state, { group: $("group").value, limit: PAGE });
  draw();
  remember();
});
$("sort").addEventListener("change", () => setSort($("sort").value, $("sort").value !== "latent"));
$("direction").addEventListener("click", () => setSort(state.sort, !state.descending));
$("filter").addEventListener("click", () => openFilters($("filters").hidden));
// A link to an SAE's details opens them even if the address has it already.
document.addEventListener("click", (event) => {
  const link = event.target.closest && event.target.closest('a[href^="#sae-"]');
  const place = link && document.getElementById(link.getAttribute("href").slice(1));
  if (place) place.open = true;
});
$("tools").addEventListener("focusin", () => loadRest());
$("more").addEventListener("click", () => {
  loadRest();
  state.limit += PAGE * 4;
  draw();
});

start().catch((error) => notice(error.message));
