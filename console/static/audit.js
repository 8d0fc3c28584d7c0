// The log goes on while somebody looks at it: new events are put on top, when asked for.

const follow = document.getElementById("follow");
if (follow) {
  const most = 500; // rows on the page; the log has them all
  const rows = document.getElementById("events"), scroll = rows.closest(".scroll");
  const bar = document.getElementById("following"), says = document.getElementById("follow-says"), announce = document.getElementById("announce");
  const word = document.getElementById("follow-word"), row = document.getElementById("row"), signs = document.getElementById("signs");
  let source = null, last = "", count = 0;

  const put = (parent, name, text, attributes) => {
    const child = document.createElement(name);
    child.textContent = text;
    for (const key in attributes) child.setAttribute(key, attributes[key]);
    parent.append(child, " ");
  };

  const add = (event) => {
    const line = row.content.cloneNode(true), at = (selector) => line.querySelector(selector);
    at("time").dateTime = event.exact.replace(" UTC", "Z").replace(" ", "T");
    at("time").title = event.exact;
    at("time").textContent = "just now";
    if (event.tone) at(".sign").classList.add("is-" + event.tone);
    const icon = [...signs.content.children].find((s) => s.dataset.icon === event.icon);
    if (icon) at(".sign").append(icon.firstElementChild.cloneNode(true));
    at("bdi").textContent = event.text;
    at(".what a").href = event.to;
    if (event.key) {
      const link = document.createElement("a"), code = document.createElement("code");
      link.href = event.is_root_key ? event.to : "/keys/" + encodeURIComponent(event.key);
      link.title = event.key;
      code.textContent = event.short_key;
      link.append(code);
      at(".about").append(link, " ");
    }
    if (event.owner) put(at(".about"), "span", event.owner);
    put(at(".about"), "span", event.keyspace || "—", { class: "fine" });
    at(".by span").textContent = event.who;
    at(".by span").title = event.who_exact;
    at(".place a").href = event.to;
    at(".place code").textContent = event.place;
    rows.prepend(line);
    while (rows.children.length > most) rows.lastElementChild.remove();
    scroll.hidden = false;
    document.getElementById("nothing")?.remove();
    count++;
    says.textContent = count === 1 ? "1 new event: " + event.text : count + " new events, the last: " + event.text;
  };

  const pause = (words) => {
    source?.close();
    source = null;
    follow.setAttribute("aria-pressed", "false");
    word.textContent = "Follow live";
    says.textContent = words;
  };

  const begin = () => {
    const from = new URL(follow.dataset.tail, location);
    if (last) from.searchParams.set("after", last);
    source = new EventSource(from);
    source.addEventListener("open", () => { if (!count) says.textContent = "Following: new events appear on top."; });
    source.addEventListener("message", (message) => {
      last = message.lastEventId;
      add(JSON.parse(message.data));
    });
    // A connection that is lost is taken up by the browser behind the last event; one
    // that was refused is not.
    source.addEventListener("error", () => {
      if (source?.readyState === EventSource.CLOSED) pause("Not following any more: reload the page.");
      else says.textContent = "The connection was lost. Trying again …";
    });
    follow.setAttribute("aria-pressed", "true");
    word.textContent = "Pause";
    bar.hidden = false;
  };

  follow.hidden = false;
  follow.addEventListener("click", () => (source ? pause("Paused. Nothing is missed: following goes on behind the last event.") : begin()));
  announce.addEventListener("change", () => says.setAttribute("aria-live", announce.checked ? "polite" : "off"));
  addEventListener("pagehide", () => source?.close());
}
