"""Who we are to S3: botocore's whole chain, asked in each process, refreshed when it has to be.

Environment, `assume-role`, web identity (IRSA), SSO, shared files, `credential_process`, containers (ECS, EKS Pod
Identity), instance roles. Nothing of it travels to workers. Where keys are in the environment and no shared file could
add to them, botocore is not even imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from tarmill.errors import AccessError, UsageError
from tarmill.storage.answers import shorten

_REFRESH_WITHIN = timedelta(minutes=6)  # obstore asks again 5 minutes before the end
TRIED = (
    "the environment (AWS_ACCESS_KEY_ID), {profile} in ~/.aws/credentials and ~/.aws/config (keys, SSO, assume-role, "
    "credential_process), web identity (AWS_WEB_IDENTITY_TOKEN_FILE), the container's and the instance's role"
)


class Keys(NamedTuple):
    """What a signature is made of, as botocore's signers name it."""

    access_key: str
    secret_key: str
    token: str | None


class Credentials:
    """Gives obstore the keys of now; `error` is what the last call met.

    Args:
        source: botocore's credentials, which refresh themselves.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self.error: Exception | None = None

    def __call__(self) -> dict[str, Any]:
        """Give keys, and until when they are good."""
        try:
            keys = self._source.get_frozen_credentials()
        except Exception as error:
            self.error = error
            raise
        self.error = None
        lasts = not hasattr(self._source, "refresh_needed")
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token or None,
            "expires_at": None if lasts else datetime.now(UTC) + _REFRESH_WITHIN,
        }


def are_keys_for_good(env: Mapping[str, str]) -> bool:
    """Tell whether the environment has keys that do not end: then botocore's chain stops at them (pure)."""
    has_keys = bool(env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"))
    return has_keys and not env.get("AWS_CREDENTIAL_EXPIRATION")


def has_no_profile(env: Mapping[str, str]) -> bool:
    """Tell whether no profile is named and no shared file could hold one (pure but for a look for the files)."""
    if env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE"):
        return False
    config = env.get("AWS_CONFIG_FILE") or "~/.aws/config"
    keys = env.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    # as botocore looks for them, to which the common AWS_CONFIG_FILE=/dev/null is no file
    return not any(os.path.isfile(os.path.expanduser(os.path.expandvars(file))) for file in (config, keys))


def environment_keys(env: Mapping[str, str]) -> dict[str, Any]:
    """Give the keys of the environment as obstore's options (pure)."""
    token = env.get("AWS_SECURITY_TOKEN") or env.get("AWS_SESSION_TOKEN")  # the order of botocore
    keys = {"access_key_id": env["AWS_ACCESS_KEY_ID"], "secret_access_key": env["AWS_SECRET_ACCESS_KEY"]}
    return {**keys, "session_token": token} if token else keys


def new_session(profile: str | None) -> Any:
    """Make a botocore session of a profile.

    Raises:
        UsageError: botocore is not installed, or there is no such profile.
    """
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise not_installed("botocore") from error
    session = botocore.session.Session(profile=profile)
    try:
        session.get_scoped_config()
    except BotoCoreError as error:
        raise UsageError(f"s3://: {error}; see AWS_PROFILE, and ~/.aws/config") from error
    return session


def not_installed(package: str) -> UsageError:
    """Make the error of a missing library."""
    return UsageError(f"s3:// needs the package {package}, which is not installed: pip install 'tarmill[s3]'")


def profile_facts(session: Any) -> dict[str, Any]:
    """Read `region` and the endpoint of a session's profile."""
    scoped = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(scoped.get("services", ""), {})
    endpoint = services.get("s3", {}).get("endpoint_url") or scoped.get("endpoint_url")
    return {"region": scoped.get("region"), "endpoint_url": endpoint}


def find_credentials(session: Any, place: str) -> Credentials:
    """Ask the chain, once, so that what is missing is told before anything is begun.

    Raises:
        AccessError: nothing is there, or what is there cannot be used; the message names what was tried.
    """
    name = session.get_config_variable("profile") or "default"
    tried = TRIED.format(profile=f"the profile {name!r}")
    try:
        source = session.get_credentials()
        found = Credentials(source) if source is not None else None
        if found is not None:
            found()
    except Exception as error:  # the chain runs commands, reads files and asks servers
        raise credentials_failed(error, place) from error
    if found is None:
        raise AccessError(
            f"no credentials for s3:// at {place}; looked in {tried}. A public bucket needs --anon", place=place
        )
    return found


def credentials_failed(error: Exception, place: str) -> AccessError:
    """Tell that the source of credentials failed."""
    text = shorten(str(error)) or type(error).__name__
    return AccessError(
        f"the credentials for s3:// at {place} cannot be had: {text}; log in again (aws sso login), or see the source "
        "that it names",
        place=place,
    )
