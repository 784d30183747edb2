"""What a split leaks from training into the test, and what knowing only that would score. Needs neither torch nor Ray."""

from ageray.audit.fingerprint import Fingerprint, fingerprints
from ageray.audit.leakage import Audit, audit

__all__ = ["Audit", "Fingerprint", "audit", "fingerprints"]
