// What pages gain where scripts run. Every page works without them.

// What only works with scripts is shown by them.
for (const live of document.querySelectorAll(".live[hidden]")) live.hidden = false;

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    document.getElementById("copied").textContent = "Copied.";
    const words = button.lastChild;
    words.textContent = " Copied";
    setTimeout(() => { words.textContent = " Copy"; }, 2000);
  });
}

// Presets fill in a form's limits.
for (const preset of document.querySelectorAll(".presets button")) {
  preset.addEventListener("click", () => {
    for (const window of ["minute", "hour", "day"]) preset.form.elements["limit_" + window].value = preset.dataset[window] || "";
  });
}

// A secret that is on the page is not lost by a stray key or click.
const saved = document.getElementById("saved");
if (saved) {
  const ask = (event) => event.preventDefault();
  addEventListener("beforeunload", ask);
  saved.addEventListener("submit", () => removeEventListener("beforeunload", ask));
}

// A sign-in link carries its code behind the #, which is sent to nobody: the page
// posts it, and takes it out of the address first.
const signin = document.getElementById("signin");
const redeem = () => {
  if (!location.hash.startsWith("#once_")) return;
  signin.credential.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname + location.search);
  signin.requestSubmit();
};
if (signin) {
  redeem();
  addEventListener("hashchange", redeem);
}

// What was wrong with a form is read first.
document.querySelector("[role=alert]")?.focus?.();

// What is slow to make, or changes while one looks, is fetched after the page:
// data-fragment is where from, data-every the seconds between two times. Whoever is
// reading or typing in it is left alone, and nothing is asked for a page that is
// not looked at.
async function fetchPart(part) {
  const address = new URL(part.dataset.fragment, location);
  address.searchParams.set("part", "1");
  const answer = await fetch(address, { headers: { Accept: "text/html" } });
  if (answer.redirected) return location.reload();
  if (!answer.ok) throw new Error(answer.statusText);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").body;
  const open = [...part.querySelectorAll("details")].map((d) => d.open);
  fresh.querySelectorAll("details").forEach((d, i) => { d.open = open[i] ?? d.open; });
  part.replaceChildren(...fresh.childNodes);
  part.dispatchEvent(new Event("part", { bubbles: true }));
}
for (const part of document.querySelectorAll("[data-fragment]")) {
  const every = Number(part.dataset.every) * 1000;
  const pause = part.dataset.pause && document.getElementById(part.dataset.pause);
  let late = 0;
  const next = async () => {
    // What was opened behind another page comes when it is looked at.
    if (document.hidden && !every) return document.addEventListener("visibilitychange", next, { once: true });
    const reading = part.contains(document.activeElement) || pause?.getAttribute("aria-pressed") === "true";
    if (!document.hidden && !(reading && part.dataset.loaded)) {
      try {
        await fetchPart(part);
        part.dataset.loaded = "1";
        late = 0;
      } catch {
        late = Math.min(late + 1, 5); // the service is asked less often while it does not answer
        if (!part.dataset.loaded) part.querySelector("[data-failed]")?.removeAttribute("hidden");
      }
      part.removeAttribute("aria-busy");
    }
    if (every) setTimeout(next, every * 2 ** late);
  };
  if (part.dataset.now === "no") {
    part.dataset.loaded = "1";
    setTimeout(next, every);
  } else {
    part.setAttribute("aria-busy", "true");
    next();
  }
  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      const stopped = pause.getAttribute("aria-pressed") !== "true";
      pause.setAttribute("aria-pressed", String(stopped));
      pause.textContent = stopped ? "Paused" : "Pause";
    });
  }
}
