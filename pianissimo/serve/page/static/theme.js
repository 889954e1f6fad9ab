// The theme: that of the system, light or dark. The choice stays in this browser.

import { button } from "/page/tools.js";

const KEY = "pianissimo-theme";
const THEMES = ["auto", "light", "dark"];

/** Adds the switch to `root`, and applies the choice of an earlier visit. */
export function addThemeSwitch(root) {
  let theme = THEMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
  const control = button("", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (theme === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
    apply();
  });
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    control.textContent = `Theme: ${theme}`;
  };
  control.className = "theme";
  apply();
  root.append(control);
}
