# Leads the programs of login shells to the credential agent, for members of the workers' group. Everybody else who is a
# worker is led there by the redirect.
#
# The file that is read belongs to the agent's user, who parses strangers' bytes and must become nobody else by it. So it is
# read and never run; only by members of the workers' group, never by root (what root's shell takes from another user, that
# user is); and only names that say where to ask, never one that loads code or moves trust. Whatever is in the file, and
# whether it is there, the shell comes up.
credential_agent_login() {
  case "$(command id -u 2>/dev/null):$(command id -ru 2>/dev/null)" in
    0:* | *:0 | :* | *:) return 0 ;;
  esac
  case " $(command id -Gn 2>/dev/null) " in
    *" credential-workers "*) ;;
    *) return 0 ;;
  esac
  # A plain file and nothing else: opening a pipe would wait for ever.
  { [ -f "$1" ] && [ -r "$1" ]; } || return 0
  # In the braces, so that what a shell has to say about a NUL byte is not said to the user.
  { _ca_rest=$(command head -c 65536 -- "$1" | LC_ALL=C command tr -d '\000'); } 2>/dev/null || return 0
  _ca_end='
'
  _ca_lines=0
  while [ -n "$_ca_rest" ] && [ "$_ca_lines" -lt 200 ]; do
    _ca_lines=$((_ca_lines + 1))
    _ca_line=${_ca_rest%%"$_ca_end"*}
    case $_ca_rest in
      *"$_ca_end"*) _ca_rest=${_ca_rest#*"$_ca_end"} ;;
      *) _ca_rest='' ;;
    esac
    case $_ca_line in
      [A-Z]*=\"*\") ;;
      *) continue ;;
    esac
    _ca_name=${_ca_line%%=*}
    _ca_value=${_ca_line#*=\"}
    _ca_value=${_ca_value%\"}
    # By their full names: what the agent writes to lead SDKs to itself. A bundle's own variables are for programs that
    # ask for them (`credential-agent exec`, EnvironmentFile=), not for every shell of a person.
    case $_ca_name in
      AWS_CONTAINER_CREDENTIALS_FULL_URI | AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE | AWS_CONTAINER_AUTHORIZATION_TOKEN) ;;
      AWS_EC2_METADATA_SERVICE_ENDPOINT | AWS_METADATA_ENDPOINT) ;;
      AWS_METADATA_SERVICE_TIMEOUT | AWS_METADATA_SERVICE_NUM_ATTEMPTS) ;;
      GCE_METADATA_HOST | GCE_METADATA_ROOT | GCE_METADATA_IP | GCE_METADATA_MTLS_MODE) ;;
      METADATA_SERVER_DETECTION | NO_PROXY) ;;
      CPL_AWS_EC2_API_ROOT_URL | CPL_AWS_AUTODETECT_EC2 | CPL_MACHINE_IS_GCE | CPL_GCE_CREDENTIALS_URL) ;;
      # What a person has chosen stays.
      AWS_REGION) [ -z "${AWS_REGION-}" ] || continue ;;
      AWS_DEFAULT_REGION) [ -z "${AWS_DEFAULT_REGION-}" ] || continue ;;
      GOOGLE_CLOUD_PROJECT) [ -z "${GOOGLE_CLOUD_PROJECT-}" ] || continue ;;
      *) continue ;;
    esac
    # None of these has a value that needs another character; what needs quoting in a shell is not one of them.
    case $_ca_value in
      '' | *[!A-Za-z0-9_:/.,@*%+=~-]*) continue ;;
    esac
    if [ "$_ca_name" = NO_PROXY ]; then
      # Added to what is there, once. Programs read one name or the other.
      case ",${NO_PROXY-${no_proxy-}}," in
        *,'*',* | *,"$_ca_value",*) ;;
        *) _ca_value=${NO_PROXY-${no_proxy-}},$_ca_value && export NO_PROXY="${_ca_value#,}" no_proxy="${_ca_value#,}" ;;
      esac
      continue
    fi
    export "$_ca_name=$_ca_value"
    # What would mask the agent, for the cloud that the file speaks of.
    case $_ca_name in
      AWS_CONTAINER_CREDENTIALS_FULL_URI)
        unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_SECURITY_TOKEN AWS_CREDENTIAL_EXPIRATION
        unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_ROLE_ARN AWS_WEB_IDENTITY_TOKEN_FILE
        unset AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_EC2_METADATA_DISABLED
        ;;
      GCE_METADATA_HOST)
        unset GOOGLE_APPLICATION_CREDENTIALS NO_GCE_CHECK
        unset CLOUDSDK_AUTH_ACCESS_TOKEN_FILE CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE
        ;;
    esac
  done
  unset _ca_rest _ca_end _ca_lines _ca_line _ca_name _ca_value
}
credential_agent_login /run/credential-agent/env
unset -f credential_agent_login
