// Keys of the whole page: Ctrl or ⌘ with Enter paints (or does what the open tab is for), Escape stops.
() => {
  const press = (names) => {
    for (const name of names) {
      const found = document.querySelector(name);
      const button = found && (found.matches("button") ? found : found.querySelector("button"));
      if (button && !button.disabled && button.offsetParent !== null) {
        button.click();
        return true;
      }
    }
    return false;
  };
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      if (press(["#ll-paint", "#ll-grid-make"])) event.preventDefault();
    } else if (event.key === "Escape" && !event.defaultPrevented) {
      press(["#ll-stop", "#ll-grid-stop"]);
    }
  }, true);
}
