// Parts of a page that are asked for when somebody wants them: a link to a page of its
// own, whose content is put in place of the link.

document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-part]");
  const into = link?.closest("[data-parts]");
  if (!into || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const address = new URL(link.href);
  address.searchParams.set("part", "1");
  into.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(address);
    if (!answer.ok || answer.redirected) throw new Error(answer.status);
    // It was escaped where it was made, as every page is.
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    into.replaceChildren(...page.body.childNodes);
    into.tabIndex = -1;
    into.focus({ preventScroll: true });
  } catch {
    location = link.href; // the page of its own says what is wrong
  } finally {
    into.removeAttribute("aria-busy");
  }
});
