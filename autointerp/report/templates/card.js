// The card of one latent: explanation, scores beside their control, windows, interventions.

const article = (entry, card) =>
  el("article", { "aria-label": `Latent ${entry.latent}` },
    ...(card.explanations.length ? card.explanations.flatMap((e, n) => explanation(e, n, card.explanations.length)) : [el("h3", { class: "failed" }, "No explanation")]),
    numbers(entry, card), scores(card), windows(card), interventions(card));

const explanation = (e, n, of) => {
  const text = e.text === null ? el("h3", { class: "failed" }, `No explanation: ${words(e.status)}`) : el("h3", { dir: "auto" }, e.text);
  const by = [...e.by];
  if (of > 1) by.unshift(`explanation ${n + 1} of ${of}`);
  if (e.n_windows !== null) by.push(`from ${e.n_windows} windows`);
  if (e.prompt) by.push(`prompt ${e.prompt}`);
  if (e.draw) by.push(`draw ${e.draw}`);
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
  line.append(item("max activation", figure(facts.max_activation)), item("mean", figure(facts.mean_activation)));
  return line;
};

const scores = (card) => {
  if (!card.scores.length) return el("p", { class: "none" }, "Not scored.");
  const main = card.scores.filter((score) => score.primary && score.control_kind === null);
  const box = el("div", {}, el("h4", {}, "Scores"), scoreTable(main, card));
  if (card.scores.length > main.length) {
    box.append(el("details", {}, el("summary", {}, `All metrics (${card.scores.length})`), scoreTable(card.scores, card)));
  }
  return box;
};

const scoreTable = (rows, card) => {
  const several = card.explanations.length > 1;
  const labels = ["Method", "Metric", "Score", "95% interval", "Control", "95% interval", "", "Windows"];
  const table = el("table", { class: "plain grades" }, el("thead", {}, el("tr", {}, ...labels.map((label, n) => el("th", { scope: "col", class: [2, 4, 7].includes(n) && "n" }, label)))));
  const body = el("tbody", {});
  for (const row of rows) {
    let method = capital(row.method);
    if (several && row.explanation !== null) method += ` · explanation ${row.explanation + 1}`;
    if (row.draw) method += ` · draw ${row.draw}`;
    if (row.control_kind !== null) method += ` · ${row.control_kind}`;
    const failed = row.real.failed ? ` (${row.real.failed} failed)` : "";
    body.append(
      el("tr", {}, el("th", { scope: "row" }, method), el("td", {}, row.metric), 
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

const TITLES = { explain: "Windows to explain from", score: "Held-out windows to score on" };

const windows = (card) => {
  if (!card.windows.length) return el("p", { class: "none" }, "No windows were kept for this latent.");
  const splits = new Map();
  for (const group of card.windows) {
    if (!splits.has(group.split)) splits.set(group.split, []);
    splits.get(group.split).push(group);
  }
  const box = el("div", { class: "splits" });
  for (const [split, groups] of splits) {
    const part = el("section", {}, el("h4", {}, TITLES[split] || capital(words(split))));
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
  const said = judged ? [`${one.right || 0} of ${judged} right`] : [];
  if (one.ungraded) said.push(`${one.ungraded} answered`);
  if (one.failed) said.push(`${one.failed} failed`);
  return `${one.method}: ${said.join(", ")}`;
};

const groupTitle = (group, groups) => {
  const same = groups.filter((other) => other.kind === group.kind);
  const shown = same.reduce((sum, other) => sum + other.windows.length, 0);
  const of = group === same[0] && shown < group.total ? `, ${shown} of ${whole(group.total)} shown` : "";
  if (group.quantile === null) return `${capital(group.kind)}${of}`;
  const end = group.quantile === group.quantiles - 1 ? ", strongest" : group.quantile === 0 ? ", weakest" : "";
  return `${capital(group.kind)}${of} · quantile ${group.quantile + 1} of ${group.quantiles}${end}`;
};

const windowRow = (one, max) =>
  el("div", { class: "window" },
    el("span", { class: "peak", title: "largest activation in the window" }, one.active.length ? figure(one.peak) : "0"),
    el("div", {}, tokens(one, max), verdicts(one.verdicts)));

const tokens = (one, max) => {
  const strength = new Map(one.active);
  const text = el("p", { class: "text", dir: "auto" });
  one.pieces.forEach((piece, at) => {
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
  return el("ul", { class: "verdicts" }, ...list.map((one) => {
    if (one.status !== "ok") return el("li", {}, `${one.method}: ${words(one.status)}`);
    const said = [one.prediction === null ? null : yes(one.prediction), one.probability === null ? null : figure(one.probability)].filter(Boolean).join(" ");
    const title = one.label === null ? null : `true label: ${yes(one.label)}${one.probability === null ? "" : `; probability ${figure(one.probability, 3)}`}`;
    const sign = one.right === null ? null : el("b", {}, one.right ? " ✓" : " ✗", el("span", { class: "vh" }, one.right ? " right" : " wrong"));
    return el("li", { class: one.right === null ? null : one.right ? "right" : "wrong", title }, `${one.method}: ${said}`, sign);
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
