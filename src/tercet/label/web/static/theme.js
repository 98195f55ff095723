// The theme that the person chose, before the first paint; without a choice the system's.
(() => {
  const root = document.documentElement, stored = "tercet.theme";
  const set = (theme) => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  try {
    set(localStorage.getItem(stored));
  } catch {}
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-act=theme]")) return;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
    set(next);
    try {
      if (next === system) localStorage.removeItem(stored);
      else localStorage.setItem(stored, next);
    } catch {}
  });
})();
