import jinja2
import numpy
import requests

template = jinja2.Template("{{ n }}")


def handler(event, context):
    """Little work, after the loading of large dependencies."""
    n = int(numpy.arange(100).sum())
    url = requests.Request("GET", "http://localhost/", params={"n": n}).prepare().url
    return template.render(n=n) + " " + url
