// Says which core the package has.
package dev.valkyrie.conformance.version

import dev.valkyrie.Valkyrie

fun main() = println(Valkyrie.version)
