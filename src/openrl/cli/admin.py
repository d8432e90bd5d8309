"""`openrl admin`: who may do what, for the operator of a server; it works beside the running server, on its store."""

import typer

from openrl.cli.admin_audit import audit
from openrl.cli.admin_quotas import quotas_app, usage
from openrl.cli.admin_shares import shares_app
from openrl.cli.admin_tenants import tenants_app
from openrl.cli.admin_users import users_app
from openrl.cli.keys import keys_app

admin_app = typer.Typer(no_args_is_help=True, help="Tenants, users, keys, shares, quotas, usage and the audit log.")
admin_app.add_typer(tenants_app, name="tenants")
admin_app.add_typer(users_app, name="users")
admin_app.add_typer(keys_app, name="keys")
admin_app.add_typer(shares_app, name="share")
admin_app.add_typer(quotas_app, name="quotas")
admin_app.command()(usage)
admin_app.command()(audit)
