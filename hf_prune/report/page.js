"use strict";
// Shows the rows that match what was typed and chosen. It only hides and shows; what it compares is text.
(() => {
  const tools = document.getElementById("row-tools");
  if (!tools) return;
  const [search, group, label, fate] = ["row-search", "row-group", "row-label", "row-fate"].map((id) => document.getElementById(id));
  const count = document.getElementById("row-count");
  const sections = [...document.querySelectorAll("section.group")];
  const rows = [...document.querySelectorAll("section.group li")];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase().replace(/\s+/g, " ")]));

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const section of sections) {
      let here = 0;
      for (const row of section.querySelectorAll("li")) {
        const matches = words.every((word) => texts.get(row).includes(word))
          && (!group.value || section.dataset.group === group.value)
          && (!label || !label.value || row.dataset.label === label.value)
          && (!fate.value || row.dataset.fate === fate.value);
        row.hidden = !matches;
        here += matches;
      }
      section.hidden = here === 0;
      shown += here;
    }
    count.textContent = shown === 0 ? "No row matches." : `${shown} of ${rows.length} rows shown.`;
  };

  for (const field of [search, group, label, fate]) if (field) field.addEventListener("input", show);
  tools.addEventListener("reset", () => setTimeout(show));
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  show();
})();
