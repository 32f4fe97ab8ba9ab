# Sourced. Gets source packages of Debian, verified by apt, with a separate apt configuration so that the machine's
# stays unchanged. The archive is the one that the machine already uses.

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
apt_source() {
    local dir=$1 suite=$2 site list
    shift 2
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
    echo "deb-src [$options] $site $suite main" >"$list"
    "${apt[@]}" update || {
        echo "once more, with an index that may be past its time (its signature is still checked)"
        echo "deb-src [$options check-valid-until=no] $site $suite main" >"$list"
        "${apt[@]}" update
    }
    (cd "$dir" && "${apt[@]}" source "$@")
    rm -rf "$dir/.apt"
}
