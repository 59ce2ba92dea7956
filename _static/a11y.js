// Repairs what an accessibility checker finds in the theme's own markup. Nothing here changes how a page looks.
(() => {
  const all = (selector) => document.querySelectorAll(selector);

  const repair = () => {
    // The visible words are the name; a label that says something else hides them from speech control.
    for (const el of all(".search-button-field[aria-label], summary[aria-label]")) el.removeAttribute("aria-label");
    // The colour-mode button names itself; its three icons only repeat that.
    for (const icon of all(".theme-switch-button .theme-switch")) {
      icon.removeAttribute("title");
      icon.removeAttribute("aria-labelledby");
      icon.querySelector("title")?.remove();
      icon.setAttribute("aria-hidden", "true");
    }
    // Roles that no longer exist, on the bibliography's list.
    for (const el of all(".citation-list, .citation")) el.removeAttribute("role");
    // Everything on a page lies in a landmark; the book's title in the sidebar does not.
    const title = document.querySelector(".sidebar-primary-items__start > .sidebar-primary-item:first-child");
    title?.setAttribute("role", "navigation");
    title?.setAttribute("aria-label", "Book title");
  };

  // A figure wider than a phone scrolls inside its frame; so it must be reachable from the keyboard.
  const reachFigures = () => {
    for (const el of all("figure, .cell_output"))
      if (el.scrollWidth > el.clientWidth) el.tabIndex = 0;
      else el.removeAttribute("tabindex");
  };

  const run = () => { repair(); reachFigures(); };
  document.addEventListener("DOMContentLoaded", run);
  window.addEventListener("load", () => setTimeout(run, 0));  // after the theme's own scripts
  window.addEventListener("resize", reachFigures);
})();
