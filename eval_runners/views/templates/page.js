"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const turn = () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; };

const visible = text => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
