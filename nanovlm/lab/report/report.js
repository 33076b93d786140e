"use strict";

// Tables are sorted by the buttons in their headers; a cell without a value stays last, whichever way.
for (const table of document.querySelectorAll("table")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table.tBodies[0], column, header.classList.contains("number"), up);
    });
  });
}

function sort(body, column, isNumber, up) {
  const rows = [...body.rows].map((row) => ({ row, value: valueOf(row.cells[column], isNumber) }));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    const order = isNumber ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true });
    return up ? order : -order;
  });
  body.append(...rows.map(({ row }) => row));
}

function valueOf(cell, isNumber) {
  if (isNumber) return cell.dataset.order === undefined ? null : Number(cell.dataset.order);
  return cell.textContent.trim() || null;
}

// Flipped questions are filtered by what is chosen, and by words that their card holds.
const form = document.querySelector("form.filter");
if (form) {
  const cards = [...document.querySelectorAll(".card")];
  const filter = () => {
    const { text, ...choices } = Object.fromEntries(new FormData(form));
    const words = text.trim().toLowerCase();
    for (const card of cards) {
      const chosen = Object.entries(choices).every(([key, value]) => !value || card.dataset[key] === value);
      card.hidden = !chosen || !card.textContent.toLowerCase().includes(words);
    }
    const shown = cards.filter((card) => !card.hidden).length;
    form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter(); // a reloaded page keeps its choices
}
