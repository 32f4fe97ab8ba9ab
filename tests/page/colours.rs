//! Text contrast in the light and dark color schemes.

use serde_json::json;

use crate::common::Browser;

/// Returns the texts whose contrast with their background is below 4.5:1, the minimum of WCAG 2.2
/// (1.4.3, AA) for normal text; and the luminance of the page's background.
const PALE: &str = r"(() => {
  const numbers = colour => colour.match(/[\d.]+/g).map(Number);
  const light = colour => {
    const part = n => (n /= 255) <= 0.03928 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4;
    const [red, green, blue] = numbers(colour).map(part);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = of => {
    for (; of; of = of.parentElement) {
      const { backgroundColor } = getComputedStyle(of);
      if (numbers(backgroundColor)[3] !== 0) return backgroundColor;
    }
    return 'rgb(255, 255, 255)';
  };
  const written = of => of.checkVisibility() &&
    [...of.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const texts = [...document.body.querySelectorAll('*')].filter(written);
  const pale = texts.map(of => {
    const [one, other] = [light(getComputedStyle(of).color), light(behind(of))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    return contrast < 4.5 ? `${of.innerText} ${contrast}` : null;
  });
  return { ground: light(behind(document.body)), texts: texts.length, pale: pale.filter(Boolean) };
})()";

/// Checks the contrast in both schemes, and restores the default.
pub async fn are_readable(browser: &mut Browser) {
    for (scheme, grounds) in [("light", 0.8..=1.0), ("dark", 0.0..=0.05)] {
        browser.prefers(scheme).await;
        let seen = browser.value(PALE).await;
        let ground = seen["ground"].as_f64().expect("a number");
        assert!(grounds.contains(&ground), "{scheme}: {seen}");
        assert!(seen["texts"].as_u64() > Some(30), "{scheme}: {seen}");
        assert_eq!(seen["pale"], json!([]), "{scheme}");
    }
    browser.prefers("").await;
}
