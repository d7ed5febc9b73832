"use strict";
// Shows the pictures with a box of the chosen class and of at least the chosen score, and hides all other boxes.
// Of those that stay, the best have a tag, as far as tags have room; the others tell it under the pointer.
// The choice is in the address behind the #, so that it can be sent around.
(() => {
  const wanted = document.getElementById("class");
  const score = document.getElementById("score");
  const scoreText = document.getElementById("score-text");
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const tiles = [...document.querySelectorAll("figure")].map((figure) => ({
    figure,
    boxes: [...figure.querySelectorAll("g")].reverse(), // the best, which is drawn last, comes first
  }));

  function place(text) {
    const [x, y, size] = ["x", "y", "font-size"].map((name) => Number(text.getAttribute(name)));
    const width = 0.62 * size * text.textContent.length;
    const left = text.getAttribute("text-anchor") === "end" ? x - width : x;
    return { left, right: left + width, top: y - size, bottom: y + 0.2 * size };
  }

  function tag(boxes) {
    const taken = [];
    for (const box of boxes) {
      const text = box.querySelector("text");
      const here = place(text);
      const free = !taken.some(
        (one) => one.left < here.right && here.left < one.right && one.top < here.bottom && here.top < one.bottom,
      );
      text.style.display = free ? "" : "none";
      if (free) taken.push(here);
    }
  }

  function apply() {
    const least = Number(score.value);
    const any = wanted.value === "" || wanted.value === "none";
    let pictures = 0;
    let boxes = 0;
    for (const tile of tiles) {
      const fits = (box) => (any || box.dataset.label === wanted.value) && Number(box.dataset.score) >= least;
      for (const box of tile.boxes) box.style.display = fits(box) ? "" : "none";
      const fitting = tile.boxes.filter(fits);
      tag(fitting);
      const all = wanted.value === "" && least === 0;
      const shown = all || (wanted.value === "none") === (fitting.length === 0);
      tile.figure.hidden = !shown;
      pictures += shown;
      boxes += shown ? fitting.length : 0;
    }
    scoreText.textContent = least.toFixed(2);
    count.textContent = `${pictures} of ${tiles.length} pictures, ${boxes} boxes`;
    nothing.hidden = pictures > 0;
  }

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    wanted.value = given.get("class") ?? "";
    if (wanted.selectedIndex < 0) wanted.value = "";
    score.value = given.get("score") ?? "0";
    apply();
  }

  function write() {
    apply();
    const given = new URLSearchParams();
    if (wanted.value !== "") given.set("class", wanted.value);
    if (Number(score.value) > 0) given.set("score", score.value);
    history.replaceState(null, "", `#${given}`);
  }

  wanted.addEventListener("change", write);
  score.addEventListener("input", write);
  addEventListener("hashchange", () => {
    read();
    document.getElementById("pictures").scrollIntoView();
  });
  for (const { figure } of tiles) {
    const enlarge = () => {
      const factor = figure.classList.toggle("large") ? 0.5 : 1;
      for (const text of figure.querySelectorAll("text")) {
        text.style.fontSize = `${factor * text.getAttribute("font-size")}px`;
      }
    };
    figure.addEventListener("click", enlarge);
    figure.addEventListener("keydown", (event) => {
      if (event.key === "Enter") enlarge();
    });
  }
  read();
})();
