// Applies the chosen theme before the first paint. A classic script, because modules are deferred.
(() => {
  const theme = localStorage.getItem("puna.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
