"use strict";

/* Tables with `data-sortable` are ordered by a click on a column's name, or Enter on it. */
window.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sortBy(table, head, column));
      head.replaceChildren(button);
    });
  }
});

function sortBy(table, head, column) {
  const falling = head.getAttribute("aria-sort") !== "descending";
  const body = table.tBodies[0];
  const key = (row) => {
    const text = row.cells[column].textContent;
    return head.className === "number" ? Number(text.replaceAll(",", "").replace("−", "-")) : text.toLowerCase();
  };
  const order = (a, b) => {
    const [first, second] = [key(a), key(b)];
    if (Number.isNaN(first) || Number.isNaN(second)) {
      return Number.isNaN(first) - Number.isNaN(second); // what is not known stands last either way
    }
    return (first < second ? -1 : first > second ? 1 : 0) * (falling ? -1 : 1);
  };
  body.append(...[...body.rows].sort(order));
  for (const other of table.tHead.rows[0].cells) {
    other.removeAttribute("aria-sort");
  }
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
}
