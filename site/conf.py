"Sphinx's configuration of the site. site/build.py makes the sources that it reads."
import configparser
from pathlib import Path

import mathjax

settings = configparser.ConfigParser()
settings.read(Path(__file__).parent.parent / "settings.ini")
settings = settings["DEFAULT"]

project, author, release = settings["lib_name"], settings["author"], settings["version"]
project_copyright = f"{settings['copyright']}"
extensions = ["myst_nb", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those that are committed
nb_render_markdown_format = "myst"  # so that links in tables that cells print are links here, too
nb_ipywidgets_js = {}
# headings that skip a level, widgets that a page cannot show, lines for the shell that no lexer knows
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

# MathJax is served from the site, as one file that draws formulas as SVG and needs no fonts.
_mathjax = Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg-full.js"
html_static_path = [str(Path(__file__).parent / "static"), str(_mathjax)]
mathjax_path = _mathjax.name
mathjax_options = {"defer": "defer"}

html_theme, html_title = "furo", "iodine_nb"
html_css_files, html_js_files, html_show_sphinx = ["site.css"], ["doors.js"], False
html_show_search_summary = False  # would fetch pages, which a page opened from a file may not
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
