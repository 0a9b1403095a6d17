(() => {
  const table = document.querySelector("#trials table"), body = table && table.tBodies[0];
  if (!body) return;
  const key = (row, i) => {
    const cell = row.cells[i], value = cell.dataset.v;
    return value === undefined ? cell.textContent.trim().toLowerCase() : value === "" ? Infinity : Number(value);
  };
  table.querySelectorAll("th[data-sort]").forEach((head) => {
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending", i = head.cellIndex;
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      [...body.rows].sort((a, b) => compare(key(a, i), key(b, i)) * (up ? 1 : -1)).forEach((row) => body.append(row));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
  const filter = document.querySelector("#filter");
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
})();
