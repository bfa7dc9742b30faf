// Before anything is painted: the colours that were chosen, if any. A classic script, because modules wait.
(() => {
  const theme = localStorage.getItem("puna.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
