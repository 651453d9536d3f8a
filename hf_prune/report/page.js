"use strict";
// Shows the rows that match what was typed and chosen, a part at a time. Rows are put into the page as text alone.
(() => {
  const PART = 40;
  const tools = document.getElementById("row-tools");
  if (!tools) return;
  const [search, label, fate, count, list, more] = ["search", "label", "fate", "count", "list", "more"]
    .map((name) => document.getElementById(`row-${name}`));
  const { labels, rows } = JSON.parse(document.getElementById("row-data").textContent);
  const texts = rows.map(([row, place, kept, , reason, text]) =>
    `${row} ${labels[place] ?? ""} ${kept ? "kept" : "dropped"} ${reason} ${text}`.toLowerCase());
  let found = [];
  let shown = 0;

  const made = (name, text, kind) => {
    const element = document.createElement(name);
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  const line = ([row, place, kept, norm, reason, text]) => {
    const item = document.createElement("li");
    const head = made("p", "", "head");
    head.append(made("b", `row ${row}`), " ", made("span", kept ? "kept" : "dropped", kept ? "kept" : "dropped"));
    if (place >= 0) head.append(` ${labels[place]}`);
    head.append(made("span", ` norm ${norm}`, "small"));
    item.append(head);
    if (text) item.append(made("p", text));
    if (reason) item.append(made("p", reason, "small"));
    return item;
  };

  const add = () => {
    const next = found.slice(shown, shown + PART);
    list.append(...next.map((place) => line(rows[place])));
    shown += next.length;
    more.hidden = shown >= found.length;
    count.textContent = found.length === 0
      ? "No row matches."
      : `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows match, ${shown} shown.`;
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = [...rows.keys()].filter((place) =>
      (!label.value || rows[place][1] === Number(label.value))
      && (!fate.value || rows[place][2] === Number(fate.value))
      && words.every((word) => texts[place].includes(word)));
    shown = 0;
    list.replaceChildren();
    add();
  };

  labels.forEach((name, place) => label.append(new Option(name, place)));
  document.getElementById("row-labels").hidden = labels.length === 0;
  for (const field of [search, label, fate]) field.addEventListener("input", filter);
  more.addEventListener("click", add);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  filter();
})();
