(() => {
  const folded = [];
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((d) => {
    folded.push(d);
    d.open = true;
  }));
  addEventListener("afterprint", () => folded.splice(0).forEach((d) => { d.open = false; }));

  const bar = document.querySelector(".filters");
  if (!bar) return;
  const cases = [...document.querySelectorAll(".case")];
  const buttons = [...bar.querySelectorAll("button[data-show]")];
  const fold = bar.querySelector("button[data-fold]");
  const search = bar.querySelector("input");
  const count = document.querySelector(".shown");
  const texts = new Map();
  const textOf = (c) => {
    if (!texts.has(c)) texts.set(c, c.textContent.toLowerCase());
    return texts.get(c);
  };
  const kinds = (c) => c.dataset.kinds.split(" ");
  const belongs = (c, button) => button.dataset.show === "all" || kinds(c).includes(button.dataset.show);
  let chosen = buttons[0];
  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    cases.forEach((c) => { c.hidden = !(belongs(c, chosen) && (!wanted || textOf(c).includes(wanted))); });
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));
    count.textContent = `Showing ${cases.filter((c) => !c.hidden).length} of ${cases.length} cases.`;
  };
  buttons.forEach((b) => {
    b.querySelector("span").textContent = cases.filter((c) => belongs(c, b)).length;
    b.addEventListener("click", () => { chosen = b; show(); });
  });
  search.addEventListener("input", show);
  fold.addEventListener("click", () => {
    const open = fold.textContent.startsWith("Show");
    fold.textContent = `${open ? "Hide" : "Show"} ${fold.dataset.fold}`;
    document.querySelectorAll(".contexts").forEach((d) => { d.open = open; });
  });
  // A link to a case that a filter hides would lead nowhere.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1))?.closest(".case");
    if (!target?.hidden) return;
    chosen = buttons[0];
    search.value = "";
    show();
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  bar.hidden = false;
  show();
})();
