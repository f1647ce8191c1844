// The explorer opens in the place of its door; on a narrow screen, or with a key held, its link is followed.
document.addEventListener("click", (event) => {
  const link = event.target.closest(".door:not(.opened) a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button || innerWidth < 760) return;
  event.preventDefault();
  const door = link.closest(".door"), frame = document.createElement("iframe"), words = document.createElement("p");
  const { theme } = document.body.dataset, shade = theme === "dark" || theme === "light" ? `&theme=${theme}` : "";
  Object.assign(frame, { src: link.href + shade, title: "The explorer: a scene taken apart" });
  words.append(Object.assign(document.createElement("a"), { href: link.href, textContent: "in a page of its own" }));
  door.classList.add("opened");
  door.replaceChildren(frame, words);
  frame.focus();
});
