package oci

import _ "embed"

//go:embed initbin/init_linux_arm64
var helperBinary []byte
