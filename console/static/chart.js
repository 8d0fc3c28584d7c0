// Charts are walked over with the arrow keys, and say what is under the pointer. Without
// scripts there are tooltips, and the table behind each.

function walk(within) {
  for (const plot of within.querySelectorAll(".chart .plot")) {
    const drawings = [...plot.querySelectorAll("svg")];
    const columns = drawings.map((svg) => [...svg.querySelectorAll(".at")]);
    const words = columns[0].map((at) => at.querySelector("title").textContent);
    for (const at of columns.flat()) at.querySelector("title").remove(); // or there would be two
    if (words.length === 0) continue;

    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    tip.setAttribute("aria-hidden", "true");
    plot.append(tip);

    let now = -1;
    const show = (i) => {
      for (const list of columns) {
        list[now]?.classList.remove("here");
        list[i]?.classList.add("here");
      }
      now = i;
      tip.hidden = i < 0;
      if (i < 0) return;
      const [when, ...lines] = words[i].split("\n");
      const head = document.createElement("strong");
      head.textContent = when;
      tip.replaceChildren(head, ...lines.map((line) => {
        const p = document.createElement("span");
        p.textContent = line;
        return p;
      }));
      plot.setAttribute("aria-valuenow", i);
      plot.setAttribute("aria-valuetext", words[i].replaceAll("\n", ", "));
      const shown = columns[drawings.findIndex((svg) => svg.getBoundingClientRect().width > 0)]?.[i];
      if (!shown) return;
      const column = shown.querySelector(".room").getBoundingClientRect(), around = plot.getBoundingClientRect();
      const middle = column.left + column.width / 2 - around.left;
      // Beside the column, on the side that has room.
      const left = middle < around.width / 2 ? middle + 12 : middle - 12 - tip.offsetWidth;
      tip.style.left = Math.max(0, Math.min(left, around.width - tip.offsetWidth)) + "px";
    };

    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", plot.dataset.label + ", arrow keys tell the figures");
    plot.setAttribute("aria-valuemin", 0);
    plot.setAttribute("aria-valuemax", words.length - 1);
    plot.setAttribute("aria-valuenow", words.length - 1);
    plot.setAttribute("aria-valuetext", words.at(-1).replaceAll("\n", ", "));
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(now < 0 ? words.length - 1 : now); });
    plot.addEventListener("blur", () => show(-1));
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, Home: 0, End: words.length - 1, PageUp: now + 10, PageDown: now - 10, Escape: -1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(event.key === "Escape" ? -1 : Math.max(0, Math.min(to, words.length - 1)));
    });
    for (const list of columns) {
      list.forEach((at, i) => at.addEventListener("pointerenter", () => show(i)));
    }
    plot.addEventListener("pointerleave", () => show(-1));
  }
}
walk(document);
document.addEventListener("part", (event) => walk(event.target)); // that has come after the page
