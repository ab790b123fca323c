import { defineConfig } from "vite";

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../shop/pages",
    emptyOutDir: true,
    target: "es2022",
    // No script within a page: the content-security-policy has no exceptions.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rolldownOptions: {
      input: ["index.html", "sales.html", "console.html"],
      output: {
        // The same name each time: a browser asks again, and a person can read the names.
        entryFileNames: "assets/[name].js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
});
