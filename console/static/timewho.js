// Whoever writes a path asks about that.
const form = document.getElementById("whocould");
const request = form?.querySelector('input[name=scope][value=""]');
form?.elements.path?.addEventListener("input", () => { if (request) request.checked = true; });
