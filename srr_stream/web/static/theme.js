// Runs before the first paint: says that scripts run, and puts the chosen theme on. A classic script, so that it blocks.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const theme = localStorage.getItem("srr-theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // Storage is closed to this page: the system's theme stays.
  }
})();
