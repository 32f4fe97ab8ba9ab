# Sourced. Gets source packages of Debian, and packages of other releases, verified by apt, with a separate apt configuration so
# that the machine's stays unchanged. The archive is the one that the machine already uses.

# Prints the URL of Debian's main archive, as configured on this machine.
debian_site() {
    apt-get indextargets --format '$(LABEL)|$(RELEASE)|$(SITE)' 'Created-By: Packages' |
        awk -F '|' '$1 == "Debian" && $2 !~ /-/ && !site { site = $3 } END { print site }'
}

# The same, or fails if there is none.
need_debian_site() {
    local site
    site=$(debian_site)
    if [[ -z $site ]] && ((EUID == 0)); then
        apt-get update >&2
        site=$(debian_site)
    fi
    [[ -n $site ]] || die "apt knows no Debian archive on this machine (is it Debian, and was 'apt-get update' run?)"
    echo "$site"
}

# apt_source DIR SUITE ARGUMENT...: runs `apt-get source ARGUMENT...` for SUITE, into the directory DIR.
apt_source() { apt_of deb-src "$1" "$2" source "${@:3}"; }

# apt_download DIR SUITE PACKAGE...: downloads packages of SUITE into the directory DIR.
apt_download() { apt_of deb "$1" "$2" download "${@:3}"; }

# apt_of TYPE DIR SUITE COMMAND...: an apt-get command with an index of that type.
apt_of() {
    local type=$1 dir=$2 suite=$3 site list
    shift 3
    site=$(need_debian_site)
    list=$dir/.apt/sources.list
    mkdir -p "$dir"/.apt/{lists,cache/archives}/partial
    local apt=(
        apt-get -q -oDir::Etc::SourceList="$list" -oDir::Etc::SourceParts=-
        -oDir::Etc::Preferences=- -oDir::Etc::PreferencesParts=- -oAPT::Default-Release=
        -oDir::State::Lists="$dir/.apt/lists" -oDir::Cache="$dir/.apt/cache"
        -oAPT::Sandbox::User=root -oAPT::Update::Error-Mode=any
    )
    local options=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "$type [$options] $site $suite main" >"$list"
    "${apt[@]}" update || {
        echo "once more, with an index that may be past its time (its signature is still checked)"
        echo "$type [$options check-valid-until=no] $site $suite main" >"$list"
        "${apt[@]}" update
    }
    (cd "$dir" && "${apt[@]}" "$@")
    rm -rf "$dir/.apt"
}
