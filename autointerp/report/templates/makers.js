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
