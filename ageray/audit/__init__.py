"""What a split leaks from training into the test, and what knowing only that would score.

Takes the faces of both sides with their fingerprints, gives an `Audit`. Ray is needed only to
compute fingerprints (`fingerprint_table`).
"""

from ageray.audit.fingerprint import Fingerprint, fingerprints
from ageray.audit.leakage import Audit, audit

__all__ = ["Audit", "Fingerprint", "audit", "fingerprints"]
