# Leads the programs of login shells to the credential agent, for members of the workers' group. Everybody else who is a
# worker is led there by the redirect.
if [ -r /run/credential-agent/env.sh ]; then
  . /run/credential-agent/env.sh
fi
