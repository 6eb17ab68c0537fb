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
