"""Ask a control plane what time it is; say when it is not our time, or when no answer comes.

clock.py HOST[:PORT]

Nothing is trusted that comes back: whoever joins looks at certificates by itself.
"""

import email.utils
import http.client
import ssl
import sys
import time

JOIN_PORT = 7444
PATIENCE_S = 20.0
# Certificates are valid from a few minutes before they were made.
MOST_S = 300.0


def fault(address: str) -> str:
    """Return what is wrong, or nothing."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        connection = http.client.HTTPSConnection(
            host, int(port or JOIN_PORT), timeout=PATIENCE_S, context=context
        )
        connection.request("GET", "/v1/authority")
        said = connection.getresponse().headers["Date"]
        theirs = email.utils.parsedate_to_datetime(said).timestamp()
    except ValueError:
        return f"--join: {address} is not HOST or HOST:PORT"
    except (OSError, http.client.HTTPException, TypeError) as error:
        return f"no control plane answers at {host}:{port or JOIN_PORT}: {error}"
    ours = time.time()
    if abs(ours - theirs) <= MOST_S:
        return ""
    way = "ahead of" if ours > theirs else "behind"
    return (
        f"this machine's clock is {abs(ours - theirs) / 3600:.1f} hours {way} the control plane's: "
        "set it, or certificates seem to have ended or not begun"
    )


if __name__ == "__main__":
    found = fault(sys.argv[1])
    sys.exit(sys.stdout.write(f"{found}\n") and 1 if found else 0)
