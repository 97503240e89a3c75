// Sort a table by the heading that is clicked or chosen with the keyboard. Numbers sort as numbers (a true minus,
// commas between thousands); unknown values stay last.
document.querySelectorAll("table.sortable thead th").forEach((heading) => {
  const sort = () => {
    const table = heading.closest("table"), headings = [...heading.parentNode.children];
    const column = headings.indexOf(heading), down = heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const text = (row.children[column].dataset.value ?? row.children[column].textContent).trim();
      const number = parseFloat(text.replace(/−/g, "-").replace(/∞/g, "Infinity").replace(/^\[/, "")
        .replace(/,(?=\d{3})/g, ""));
      return text === "" || text === "—" ? null : Number.isNaN(number) ? text : number; };
    const order = (x, y) => typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]).sort(([x], [y]) =>
      x === null || y === null ? (x === null) - (y === null) : down ? -order(x, y) : order(x, y));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  heading.tabIndex = 0;
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sort();
  });
});
