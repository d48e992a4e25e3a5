"""A browser of few words, behind a proxy that speaks TLS: it keeps cookies, and fills in forms."""

import http.client
import re
from urllib.parse import urlencode, urlsplit


class Browser:
    """At that address, as the proxy says."""

    def __init__(self, url: str, address: str) -> None:
        self._host, self._address = urlsplit(url).netloc, address
        self.cookies: dict[str, str] = {}  # as they were set, with what the server said of them

    def go(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        """Status, and the page or where it leads."""
        sent = "; ".join(cookie.partition(";")[0] for cookie in self.cookies.values())
        headers = {
            "Cookie": sent,
            "Content-Type": "application/x-www-form-urlencoded",
            "Referer": f"https://{self._host}{path}",
            "X-Forwarded-For": self._address,
            "X-Forwarded-Proto": "https",
        }
        connection = http.client.HTTPConnection(self._host, timeout=60)
        connection.request(method, path, urlencode(form) if form else None, headers)
        answer = connection.getresponse()
        page = answer.read().decode()
        connection.close()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            self.cookies[cookie.partition("=")[0]] = cookie
        return answer.status, answer.getheader("Location") or page

    def fill_in(self, path: str, **fields: str) -> tuple[int, str]:
        """Open the form, fill it in, send it."""
        status, page = self.go("GET", path)
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
        if status != 200 or token is None:
            return status, page
        return self.go("POST", path, {"csrf_token": token[1], **fields})
