// While the browser keeps the file, the page says how far it is.

const form = document.getElementById("export"), box = document.getElementById("progress"), bar = document.getElementById("bar"), says = document.getElementById("how-far");
let waiting = 0;

const look = async () => {
  clearTimeout(waiting);
  let p;
  try {
    p = await (await fetch("/audit/export/progress?once=" + encodeURIComponent(form.elements.once.value))).json();
  } catch {
    says.textContent = "The connection was lost.";
    return;
  }
  const number = (n) => n.toLocaleString("en");
  if (p.total > 0) { bar.max = p.total; bar.value = p.done; } else { bar.removeAttribute("value"); }
  if (p.ended) {
    bar.max = 1;
    bar.value = p.whole ? 1 : 0;
    says.textContent = p.whole ? "Done: " + number(p.done) + (p.total ? " events." : " lines.") : "It broke off: what was kept is not whole. Try again.";
    return;
  }
  says.textContent = p.total ? number(p.done) + " of " + number(p.total) + " events" : p.done ? number(p.done) + " lines so far" : "Preparing …";
  waiting = setTimeout(look, 400);
};

form?.addEventListener("submit", () => {
  box.hidden = false;
  says.textContent = "Preparing …";
  waiting = setTimeout(look, 300);
});
