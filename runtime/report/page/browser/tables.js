"use strict";

/* Sort tables with `data-sortable` by their column headings. */
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
  const descending = head.getAttribute("aria-sort") !== "descending";
  const body = table.tBodies[0];
  const key = (row) => {
    const text = row.cells[column].textContent;
    return head.className === "number" ? Number(text.replaceAll(",", "").replace("−", "-")) : text.toLowerCase();
  };
  const order = (a, b) => {
    const [first, second] = [key(a), key(b)];
    if (Number.isNaN(first) || Number.isNaN(second)) {
      return Number.isNaN(first) - Number.isNaN(second); // missing values last in either order
    }
    return (first < second ? -1 : first > second ? 1 : 0) * (descending ? -1 : 1);
  };
  body.append(...[...body.rows].sort(order));
  for (const other of table.tHead.rows[0].cells) {
    other.removeAttribute("aria-sort");
  }
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}
