// Kernel tables sort by a click on a column's head; without this they stand by cost.
for (const box of document.querySelectorAll("[data-sorts]")) {
  const bodies = [...box.querySelectorAll("tbody")];
  const sizes = bodies.map((body) => body.rows.length);
  const heads = [...box.querySelectorAll("thead tr")].map((row) => [...row.cells]);
  const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
  const sort = (at, up) => {
    const rows = bodies.flatMap((body) => [...body.rows]).filter((row) => !row.dataset.rest);
    const rest = bodies.flatMap((body) => [...body.rows]).filter((row) => row.dataset.rest);
    const numbers = rows.every((row) => row.cells[at].dataset.value !== undefined);
    rows.sort((a, b) => {
      const [x, y] = [value(a, at), value(b, at)];
      return (up ? 1 : -1) * (numbers ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    rows.push(...rest);
    bodies.forEach((body, i) => body.append(...rows.splice(0, sizes[i])));
    for (const cells of heads) {
      cells.forEach((cell, i) => cell.setAttribute("aria-sort",
        i !== at ? "none" : up ? "ascending" : "descending"));
    }
  };
  for (const cells of heads) {
    cells.forEach((cell, at) => {
      if (cell.dataset.plain !== undefined) return;
      const button = document.createElement("button");
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => sort(at, cell.getAttribute("aria-sort") === "descending"));
    });
  }
}
