// Filters of the forest: a row is shown if it has every chosen value.
"use strict";

const form = document.querySelector("#filters");
const rows = [...document.querySelectorAll("tr[data-budget]")];
const found = document.querySelector("#found");

function shown(row, chosen) {
  return chosen.every(([name, value]) => value === "" || row.dataset[name] === value);
}

function apply() {
  const chosen = [...new FormData(form).entries()];
  for (const row of rows) row.hidden = !shown(row, chosen);
  for (const body of document.querySelectorAll("#atlas-forest tbody")) {
    body.hidden = ![...body.querySelectorAll("tr[data-budget]")].some((row) => !row.hidden);
  }
  const left = rows.filter((row) => !row.hidden);
  const count = (side) => left.filter((row) => row.dataset.side === side).length;
  found.textContent = `${left.length} of ${rows.length} comparisons: helped in ${count("better")}, hurt in ${count("worse")}, `
    + `no clear difference or not judged in ${count("unclear")}`;
}

form.hidden = false;
form.addEventListener("input", apply);
form.addEventListener("reset", () => setTimeout(apply));
apply();
