package oci

import _ "embed"

//go:embed initbin/init_linux_amd64
var helperBinary []byte
