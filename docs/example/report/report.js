(() => {
"use strict";

// Elements and numbers. All text from the run is untrusted: it enters the page as text nodes and as the value of
// `title`, never as markup. The scripts are joined into one function (see build.py).

const el = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined)); // strings become text nodes
  return node;
};

const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const figure = (value, decimals = 2) => {
  if (value === null || value === undefined) return "—";
  const size = Math.abs(value);
  let text = value.toFixed(decimals);
  if (size && size < 10 ** -decimals) text = value.toPrecision(2);
  else if (size >= 1000) text = Math.round(value).toLocaleString("en-US");
  else if (size >= 100) text = value.toFixed(1);
  return text.replace("-", "\u2212");
};
const whole = (value) => (value === null || value === undefined ? "—" : value.toLocaleString("en-US"));
const share = (value) => {
  if (value === null || value === undefined) return "—";
  const percent = 100 * value;
  if (percent === 0 || percent >= 10) return `${percent.toFixed(0)}%`;
  return `${percent >= 1e-4 ? percent.toPrecision(2) : percent.toExponential(1)}%`;
};
const interval = (grade) => (grade.low === null || grade.high === null ? "" : `[${figure(grade.low)}, ${figure(grade.high)}]`);
const words = (name) => name.replaceAll("_", " ");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// Scores as a table, activations as a histogram, the logit lens.

const scores = (card) => {
  if (!card.scores.length) return el("p", { class: "none" }, "Not scored.");
  const main = headline(card);
  const box = el("div", {}, el("h4", {}, "Scores"), scoreTable(main, card));
  if (card.scores.length > main.length) {
    box.append(el("details", {}, el("summary", {}, `All scores (${card.scores.length})`), scoreTable(card.scores, card)));
  }
  return box;
};

// The builder picked them (grades.headline): one score by its number, or the mean of repeated ones.
const headline = (card) => card.headline.map((one) => (typeof one === "number" ? card.scores[one] : one));

const scoreTable = (rows, card) => {
  const several = card.explanations.length > 1;
  const labels = ["Method", "Metric", "Score", "95% interval", "Control", "95% interval", "", "Windows"];
  const table = el("table", { class: "plain grades" }, el("thead", {}, el("tr", {}, ...labels.map((label, n) => el("th", { scope: "col", class: [2, 4, 7].includes(n) && "n" }, label)))));
  const body = el("tbody", {});
  for (const row of rows) {
    const column = head.columns[row.column];
    const notes = [row.setting, several && row.explanation !== null ? `explanation ${row.explanation + 1}` : null, row.control_kind].filter(Boolean);
    const failed = row.real.failed ? ` (${row.real.failed} failed)` : "";
    body.append(
      el("tr", {}, el("th", { scope: "row" }, capital(column.method), notes.length ? el("small", {}, ` ${notes.join(", ")}`) : null), el("td", {}, column.metric),
        ...grade(row.real, "score"), ...(row.control ? grade(row.control, "control") : [el("td", { class: "n", "data-label": "control" }, "—"), el("td", {})]),
        el("td", { class: "dot" }, dots(row)), el("td", { class: "n", "data-label": "windows" }, `${whole(row.real.n)}${failed}`)),
    );
  }
  table.append(body);
  return el("div", { class: "wide" }, table);
};

const grade = (one, label) =>
  one.value === null
    ? [el("td", { class: "n failed", "data-label": label }, words(one.status)), el("td", { class: "ci" })]
    : [el("td", { class: "n", "data-label": label }, figure(one.value)), el("td", { class: "ci" }, interval(one))];

// Score and control on one line from 0 to 1; other ranges differ from metric to metric and get no picture.
const dots = (row) => {
  const all = [row.real, row.control].filter(Boolean).flatMap((one) => [one.value, one.low, one.high]).filter((value) => value !== null);
  if (row.real.value === null || all.some((value) => value < 0 || value > 1)) return null;
  const x = (value) => (6 + 164 * value).toFixed(1);
  const picture = svg("svg", { class: "dots", viewBox: "0 0 176 20", "aria-hidden": "true" },
    svg("line", { class: "axis", x1: x(0), x2: x(1), y1: 10, y2: 10 }), svg("line", { class: "half", x1: x(0.5), x2: x(0.5), y1: 1, y2: 19 }));
  for (const [one, name, y] of [[row.control, "control", 14], [row.real, "real", 6]]) {
    if (!one || one.value === null) continue;
    if (one.low !== null && one.high !== null) picture.append(svg("line", { class: name, x1: x(one.low), x2: x(one.high), y1: y, y2: y, "stroke-width": 1.5 }));
    picture.append(svg("circle", { class: name, cx: x(one.value), cy: y, r: 3 }));
  }
  return picture;
};

const histogram = (card) => {
  const found = card.histogram;
  if (!found) return null;
  const [width, height, most] = [320, 84, Math.max(...found.counts)];
  const pitch = width / found.counts.length;
  const total = found.counts.reduce((sum, n) => sum + n, 0);
  const about = `${whole(total)} non-zero activations in ${whole(found.windows)} sampled activating windows, from ${figure(found.low)} to ${figure(found.high)}`;
  const picture = svg("svg", { class: "chart histogram", viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": about });
  found.counts.forEach((n, at) => {
    // Square roots: the few strong ones would not be seen beside the many weak ones.
    const high = height * Math.sqrt(n / most);
    if (n) picture.append(svg("rect", { x: (at * pitch + 0.5).toFixed(1), y: (height - high).toFixed(1), width: (pitch - 1).toFixed(1), height: high.toFixed(1) }, svg("title", {}, `${whole(n)} from ${figure(found.low + ((found.high - found.low) * at) / found.counts.length)} to ${figure(found.low + ((found.high - found.low) * (at + 1)) / found.counts.length)}`)));
  });
  picture.append(svg("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }),
    svg("text", { class: "tick", x: 0, y: height + 14 }, figure(found.low)), svg("text", { class: "tick", x: width, y: height + 14, "text-anchor": "end" }, figure(found.high)));
  return el("figure", {}, el("h4", {}, "Activations"), picture,
    el("figcaption", { class: "by" }, `${whole(total)} non-zero activations in ${whole(found.windows)} sampled windows, heights as square roots. Windows are drawn evenly over quantiles, so strong ones are more frequent here than in the text.`));
};

const lens = (card) => {
  if (!card.lens) return null;
  const list = (title, rows) => el("div", {}, el("h5", {}, title), el("ol", {}, ...rows.map(([token, logit]) => {
    const code = el("code", {});
    addPiece(code, token);
    return el("li", {}, code, el("small", {}, ` ${figure(logit)}`));
  })));
  return el("section", { class: "lens" }, el("h4", {}, "Logit lens of the decoder direction"), el("div", {}, list("promotes", card.lens.top), list("suppresses", card.lens.bottom)));
};

// The card of one latent: explanation, scores beside their control, activations, windows, interventions.

const article = (entry, card) =>
  el("article", { "aria-label": `Latent ${entry.latent}` },
    explanations(card), numbers(entry, card), scores(card),
    el("div", { class: "pictures" }, histogram(card), lens(card)),
    windows(card), interventions(card), prompts(card));

const explanations = (card) => {
  const [first, ...others] = card.explanations;
  if (!first) return el("h3", { class: "failed" }, "No explanation");
  const box = el("div", {}, ...explanation(first, 0, card.explanations.length));
  // Both poles of a signed latent are said at once; repetitions wait to be asked for.
  if (others.length) {
    const list = el("ol", { start: 2 }, ...others.map((one) => el("li", {}, el("span", { class: one.text === null ? "failed" : null, dir: "auto" }, one.text === null ? `No explanation: ${words(one.status)}` : one.text), " ", el("small", {}, source(one).join(" · ")))));
    box.append(el("details", { class: "others", open: others.length < 3 }, el("summary", {}, `${others.length} more ${others.length > 1 ? "explanations" : "explanation"}`), list));
  }
  return box;
};

const source = (e) => {
  const by = [...e.by];
  if (e.setting) by.unshift(e.setting);
  if (e.n_windows !== null) by.push(`from ${e.n_windows} windows`);
  return by;
};

const explanation = (e, n, of) => {
  const text = e.text === null ? el("h3", { class: "failed" }, `No explanation: ${words(e.status)}`) : el("h3", { dir: "auto" }, e.text);
  const by = source(e);
  if (of > 1) by.unshift(`explanation ${n + 1} of ${of}`);
  if (e.text !== null && e.status !== "ok") by.push(words(e.status));
  return [text, el("p", { class: "by" }, by.join(" · "))];
};

const numbers = (entry, card) => {
  const item = (label, value) => el("span", {}, `${label} `, el("b", {}, value));
  const facts = card.facts;
  const line = el("p", { class: "numbers" }, item("latent", String(entry.latent)));
  if (head.groups.length > 1) line.append(item("of", head.groups[entry.group]));
  if (card.state !== null) line.append(item("state", card.state));
  line.append(item("density", share(facts.density)));
  if (facts.n_fired !== null) line.append(item("fired on", `${whole(facts.n_fired)} of ${whole(facts.n_tokens)} tokens`));
  if (facts.n_negative) line.append(item("negative on", whole(facts.n_negative)));
  line.append(item("max activation", figure(facts.max_activation)), item("mean", figure(facts.mean_activation)));
  return line;
};

const prompts = (card) => {
  if (!card.prompts.length) return null;
  return el("p", { class: "by prompts" }, "Prompts: ", ...card.prompts.flatMap(([who, sha], n) => [n ? ", " : null, `${who} `, el("code", {}, sha)]));
};

const TITLES = { explain: "Windows to explain from", score: "Held-out windows to score on" };

const windows = (card) => {
  if (!card.windows.length) return el("p", { class: "none" }, "No windows were kept for this latent.");
  const splits = new Map();
  for (const group of card.windows) {
    if (!splits.has(group.split)) splits.set(group.split, []);
    splits.get(group.split).push(group);
  }
  const which = [card.corpus === null ? null : `corpus ${card.corpus}`, card.draw === null ? null : `draw ${card.draw}`].filter(Boolean);
  const box = el("div", { class: "splits" });
  for (const [split, groups] of splits) {
    const part = el("section", {}, el("h4", {}, TITLES[split] || capital(words(split))));
    if (which.length) part.append(el("p", { class: "by" }, `of ${which.join(", ")}; scores above are of all`));
    if (split === "score" && card.tallies.length) part.append(el("p", { class: "by" }, card.tallies.map(tally).join(" · ")));
    for (const group of groups) {
      part.append(el("h5", {}, groupTitle(group, groups)), ...group.windows.map((one) => windowRow(one, card.max)));
    }
    box.append(part);
  }
  return box;
};

const tally = (one) => {
  const judged = (one.right || 0) + (one.wrong || 0);
  const said = judged ? [`${one.right || 0} of ${judged} ${one.ranked ? "on the right side" : "right"}`] : [];
  if (one.ungraded) said.push(`${one.ungraded} ${one.ranked ? "at the middle" : "answered"}`);
  if (one.failed) said.push(`${one.failed} failed`);
  return `${head.methods[one.method]}: ${said.join(", ")}`;
};

const groupTitle = (group, groups) => {
  const same = groups.filter((other) => other.kind === group.kind && other.pole === group.pole);
  const shown = same.reduce((sum, other) => sum + other.windows.length, 0);
  const of = group === same[0] && shown < group.total ? `, ${shown} of ${whole(group.total)} shown` : "";
  const kind = `${capital(group.kind)}${group.pole === null ? "" : group.pole < 0 ? ", negative pole" : ", positive pole"}`;
  if (group.quantile === null) return `${kind}${of}`;
  const end = group.quantile === group.quantiles - 1 ? ", strongest" : group.quantile === 0 ? ", weakest" : "";
  return `${kind}${of} · quantile ${group.quantile + 1} of ${group.quantiles}${end}`;
};

const windowRow = (one, max) =>
  el("div", { class: "window", title: `window ${one.id}${one.document === null ? "" : `, document ${one.document}`}` },
    el("span", { class: "peak" }, one.active.length ? figure(one.peak) : "0"),
    el("div", {}, tokens(one, max), verdicts(one.verdicts)));

const tokens = (one, max) => {
  const strength = new Map();
  for (let n = 0; n < one.active.length; n += 2) strength.set(one.active[n], one.active[n + 1]);
  const text = el("p", { class: "text", dir: "auto" });
  (one.pieces ? one.pieces.split("\x7f") : []).forEach((piece, at) => {
    const value = strength.get(at);
    if (value === undefined) return addPiece(text, piece);
    const part = max ? Math.abs(value) / max : 0;
    const mark = el("mark", { class: value < 0 && "negative", title: `activation ${figure(value)} (${Math.round(100 * part)}% of max)` });
    mark.style.setProperty("--a", Math.min(1, part).toFixed(3));
    addPiece(mark, piece);
    text.append(mark);
  });
  return text;
};

// A newline is shown as a sign and not as a break: windows are fragments, and layout would hide which token it is.
const addPiece = (into, piece) => {
  for (const part of piece.split(/(\n|\t)/)) {
    if (part === "\n") into.append(el("span", { class: "ws" }, "↵"), el("wbr"));
    else if (part === "\t") into.append(el("span", { class: "ws" }, "⇥\u00a0"));
    else if (part) into.append(part);
  }
};

const yes = (value) => (value ? "yes" : "no");

const verdicts = (list) => {
  if (!list.length) return null;
  return el("ul", { class: "verdicts" }, ...list.map(([method, right, label, prediction, number, side, status]) => {
    const name = head.methods[method];
    if (status !== null) return el("li", {}, `${name}: ${words(status)}`);
    const said = [prediction === null ? null : yes(prediction), number === null ? null : figure(number)].filter(Boolean).join(" ");
    const about = [];
    if (label !== null) about.push(label ? "the latent fires here" : "the latent is silent here");
    if (number !== null) about.push(`the scorer's number is ${figure(number, 3)}`);
    if (side !== null) about.push(`${label ? "above" : "below"} ${Math.round(100 * side)}% of the windows where the latent ${label ? "is silent" : "fires"}`);
    const sign = right === null ? null : el("b", {}, right ? " ✓" : " ✗", el("span", { class: "vh" }, right ? " right" : " wrong"));
    return el("li", { class: right === null ? null : right ? "right" : "wrong", title: about.join("; ") || null }, `${name}: ${said}`, sign);
  }));
};

const interventions = (card) => {
  if (!card.pairs.length) return null;
  const of = card.n_pairs > card.pairs.length ? `, ${card.pairs.length} of ${card.n_pairs} shown` : "";
  return el("section", {}, el("h4", {}, `Intervention: what the model writes without and with the latent steered${of}`),
    ...card.pairs.map((pair) =>
      el("div", { class: "pair" },
        el("div", {}, el("h5", {}, "Clean"), el("p", { class: "text", dir: "auto" }, pair.clean)),
        el("div", {}, el("h5", {}, `Steered${pair.probability === null ? "" : `, p = ${figure(pair.probability)}`}${pair.status === "ok" ? "" : `, ${words(pair.status)}`}`),
          el("p", { class: "text", dir: "auto" }, pair.steered)))));
};

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
})();
